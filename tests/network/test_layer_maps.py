"""Captured maps are exact copies, and what is stored of them; other outputs are a problem and no error.

On devices without float64, such as Apple's GPUs, tensors are moved to the CPU before they become float64.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from trainers import hook_count

from lightning_anomaly.network.layer_maps import LayerMaps, MapCapture, pool_maps, summarize_maps
from lightning_anomaly.network.layers import select_layers

IMAGES = torch.randn(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.arange(20.0)[:, None, None, None].expand(20, 2, 3, 3)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))


def take(layer: nn.Module, *batches, **options) -> LayerMaps:
    """Capture a layer that is called with these batches, one in each pass."""
    taken = MapCapture({"layer": layer}, **{"rectify": False, "max_map_side": 1000, **options})
    for batch in batches:
        with taken:
            layer(batch)
    return taken.maps["layer"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_maps_are_the_outputs_of_the_layer_in_the_order_of_the_samples(mode):
    """Even before an in-place ReLU, and in any mode and memory layout."""
    model = network()
    expected = model[0](IMAGES).detach()
    taken = MapCapture(select_layers(model), rectify=False, max_map_side=7)
    for batch in IMAGES.contiguous(memory_format=torch.channels_last).split(4):
        with taken, mode():
            model(batch)
    maps = taken.maps["0"]
    torch.testing.assert_close(maps.maps, expected)
    torch.testing.assert_close(torch.cat(maps.extremes), torch.stack([expected.amax((2, 3)), expected.amin((2, 3))], 2))
    assert (maps.count, maps.size, maps.problem) == (6, (7, 7), None)
    assert not maps.maps.requires_grad
    assert taken.maps["2"].size == (5, 5)


@pytest.mark.parametrize(("dtype", "rectify"), [(torch.float64, True), (torch.float32, False), (torch.bfloat16, True)])
def test_captured_maps_are_rectified_copies(dtype, rectify):
    values = drawn(4, 2, 3, 3, dtype=dtype)
    before = values.clone()
    maps = take(nn.Identity(), values, rectify=rectify).maps
    assert torch.equal(values, before)
    values.zero_()
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(maps.to(dtype), before.clamp(min=0) if rectify else before)


def take_several(passes: list[dict[str, Tensor]], limit: int) -> MapCapture:
    """Capture passes that call these layers with these maps, until the capture is full."""
    layers = {name: nn.Identity() for maps in passes for name in maps}
    taken = MapCapture(layers, limit=limit)
    for maps in passes:
        assert not taken.full
        with taken:
            for name, batch in maps.items():
                layers[name](batch)
    return taken


def test_the_limit_is_respected_across_and_within_batches():
    taken = take_several([{"layer": batch} for batch in NUMBERS[:9].split(3)], limit=7)
    assert taken.full
    assert taken.maps["layer"].maps[:, 0, 0, 0].tolist() == list(range(7))
    assert len(torch.cat(taken.maps["layer"].extremes)) == 7
    assert not MapCapture({}, limit=3).full
    assert not MapCapture({}).full


def test_a_layer_with_another_number_of_maps_is_left_out_and_does_not_affect_the_limit():
    first, second = NUMBERS[:10].split(5)
    passes = [{"a": maps, "b": maps, "parts": maps.repeat(2, 1, 1, 1)} for maps in (first, second)]
    taken = take_several([passes[0], {**passes[1], "later": second}], limit=10)
    assert taken.full
    assert [(taken.maps[name].count, taken.maps[name].problem) for name in "ab"] == [(10, None)] * 2
    assert "10 maps where most layers gave 5" in taken.maps["parts"].problem
    assert "5 maps where most layers gave 10" in taken.maps["later"].problem
    beyond = take_several([{"a": NUMBERS[:10], "b": NUMBERS[:10], "parts": NUMBERS}], limit=10)
    assert "20 maps where most layers gave 10" in beyond.maps["parts"].problem


def test_only_the_first_call_in_a_pass_counts_and_empty_batches_are_skipped():
    layer = nn.Identity()
    taken = MapCapture({"layer": layer}, rectify=False)
    for step in range(2):
        layer(torch.zeros(2, 1, 1, 1))  # outside
        with taken:
            for call in range(3):
                layer(torch.full((2, 1, 1, 1), 10.0 * step + call))
    assert taken.maps["layer"].maps.flatten().tolist() == [0, 0, 10, 10]
    empty, full = torch.zeros(0, 2, 3, 3), torch.ones(2, 2, 3, 3)
    maps = take(nn.Identity(), empty, full, empty, full, torch.zeros(0, 5, 1, 1))
    assert (maps.count, maps.problem, maps.maps.shape) == (4, None, (4, 2, 3, 3))
    nothing = take(nn.Identity(), empty)
    assert (nothing.count, nothing.batches, nothing.problem) == (0, [], None)


def test_large_outputs_are_captured_in_parts_without_a_difference():
    values, sizes = drawn(5, 2, 1000, 1000), []
    maps = take(nn.Identity(), values, max_map_side=2)
    torch.testing.assert_close(maps.maps, pool_maps(values, 2))
    assert maps.sparsity.tolist() == pytest.approx((values <= 0).double().mean((0, 2, 3)).tolist())
    take(nn.Identity(), values, summary=lambda part: sizes.append(len(part)) or part.amax((2, 3)))
    assert sizes == [2, 2, 1]


def test_a_summary_replaces_the_maps():
    for shape in ((4, 3), (4, 3, 20), (4, 3, 5, 5), (4, 3, 2, 3, 4)):
        maps = drawn(*shape)
        taken = take(nn.Identity(), maps, summary=lambda maps: maps.reshape(4, 3, -1).amax(2))
        assert torch.equal(taken.maps, maps.reshape(4, 3, -1).amax(2))
        assert (taken.size, taken.count, taken.zeros, taken.extremes) == (shape[2:], 4, None, [])


def test_sparsity_is_the_share_of_values_that_are_not_positive_before_pooling():
    values = torch.tensor([[-1.0, 1, 0, 5], [2, -3, 4, 1]]).reshape(2, 1, 2, 2)
    for rectify in (True, False):
        maps = take(nn.Identity(), values[:1], values[1:], rectify=rectify, max_map_side=1)
        assert maps.maps.shape == (2, 1, 1, 1)
        assert maps.sparsity.tolist() == [3 / 8]
    assert take(nn.Identity(), torch.full((2, 1, 2, 2), torch.nan)).sparsity.tolist() == [0]


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ([(torch.ones(2, 1, 1, 1),)], "a tuple"),
        ([torch.ones(3)], "shape (3,)"),
        ([torch.ones(1, 1, 1, 1, 1, 1)], "shape (1, 1, 1, 1, 1, 1)"),
        ([torch.ones(2, 1, 1, 1).long()], "torch.int64"),
        ([torch.ones(2, 3, 1, 1), torch.ones(2, 4, 1, 1)], "shape changes, from (3, 1, 1) to (4, 1, 1)"),
        ([torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4)], "shape changes, from (3, 4, 4) to (3, 4)"),
    ],
)
def test_an_output_without_maps_is_a_problem_and_no_error(outputs, problem):
    maps = take(nn.Identity(), *outputs, torch.ones(2, 3, 4, 4))
    assert problem in maps.problem
    assert maps.count == 2 * (len(outputs) - 1)
    assert "shape (2, 3, 3)" in take(nn.Conv2d(1, 2, 3), torch.ones(1, 5, 5)).problem  # not batched


def test_a_failing_summary_is_a_problem_and_no_error():
    def fails(*_):
        raise ZeroDivisionError

    assert "ZeroDivisionError" in take(nn.Identity(), torch.ones(2, 1, 1, 1), summary=fails).problem


def test_hooks_exist_only_inside_the_capture_and_foreign_hooks_stay():
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    taken = MapCapture(select_layers(model))
    with suppress(KeyboardInterrupt), taken:
        taken.attach()
        assert hook_count(model) == 1
        raise KeyboardInterrupt
    assert hook_count(model) == 1
    taken.remove()
    assert hook_count(model) == 1


@pytest.fixture
def compiled() -> Iterator[tuple[nn.Module, list[object]]]:
    graphs: list[object] = []
    yield torch.compile(network(), backend=lambda graph, _: graphs.append(graph) or graph.forward), graphs
    torch._dynamo.reset()


def test_a_compiled_model_is_captured_and_compiled_again_afterwards(compiled):
    model, graphs = compiled
    alone, first, second = (MapCapture(select_layers(model)) for _ in range(3))
    with alone:
        model(IMAGES)
    assert alone.maps["2"].count == 6
    for one, other in ((first, second), (second, first)):  # in any order
        one.attach()
        other.attach()
        one.remove()
        model(IMAGES)
        other.remove()
    assert list(first.maps) == ["0", "2"]
    assert (first.maps["0"].count, second.maps["0"].count) == (6, 6)
    assert graphs == []
    model(IMAGES)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("size", "side", "windows"),
    [
        ((8, 8), 8, (1, 1)),
        ((9, 9), 8, (2, 2)),
        ((13, 30), 4, (4, 8)),
        ((65,), 8, (2,)),
        ((200,), 3, (23,)),
        ((5, 4, 9), 8, (2, 1, 3)),
    ],
)
def test_pooling_averages_windows_until_no_side_is_larger(size, side, windows):
    maps = drawn(2, 3, *size).double()
    expected = [[oracle.pooled(image.numpy(), windows) for image in sample] for sample in maps]
    np.testing.assert_allclose(pool_maps(maps, side).numpy(), expected, rtol=0, atol=1e-12)


def test_pooling_never_leaves_more_pixels_than_allowed():
    for side in range(1, 10):
        for size in range(1, 40):
            assert max(pool_maps(torch.zeros(1, 1, size, 5), side).shape[2:]) <= side
            assert pool_maps(torch.zeros(1, 1, size), side).shape[2] <= side**2
            assert pool_maps(torch.zeros(1, 1, size, size, 2), side).shape[2:].numel() <= max(1, side**2)
    assert pool_maps(maps := torch.zeros(3, 2), 1) is maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(), (7,), (200,), (16, 16), (13, 30), (3, 4, 2), (5, 4, 9)])
def test_maps_are_pooled_and_their_extremes_and_zeros_found_as_by_plain_operations(size, dtype):
    maps = (drawn(4, 3, *size) * 3 + 1).to(dtype)
    maps[0, 0] = 0
    pixels = maps.reshape(4, 3, -1)
    for rectify in (True, False):
        pooled, extremes, zeros = summarize_maps(maps, 4, rectify)
        expected = maps.clamp(min=0) if rectify else maps
        torch.testing.assert_close(pooled, pool_maps(expected, 4), rtol=1e-6, atol=1e-6)
        assert torch.equal(extremes, torch.stack([pixels.amax(2), pixels.amin(2)], 2))
        assert torch.equal(zeros, (pixels <= 0).sum((0, 2)))
    mirrored = maps.flip(-1).contiguous().flip(-1) if size else maps
    assert all(map(torch.equal, summarize_maps(mirrored, 4, True), summarize_maps(maps, 4, True)))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_stays_so_and_changes_no_other(broken):
    maps = drawn(3, 2, 16, 16)
    (alone, *_), changed = summarize_maps(maps, 4, True), maps.clone()
    changed[2, 1, 3, 3] = broken
    pooled, extremes, _ = summarize_maps(changed, 4, True)
    for finite in (pooled.isfinite().all((2, 3)), extremes.isfinite().all(2)):
        assert (~finite).nonzero().tolist() == [[2, 1]]
    pooled[2, 1] = alone[2, 1]
    assert torch.equal(pooled, alone)


def test_a_sample_is_not_finite_where_it_alone_is_not():
    extremes = torch.zeros(4, 3, 2)
    extremes[2, 0, 1] = torch.nan
    extremes[:2, 1] = torch.inf  # of half of the samples
    extremes[1:, 2] = -torch.inf
    assert LayerMaps(extremes=[extremes]).nonfinite.tolist() == [False, False, True, False]


class Single(Tensor):
    """A tensor on a device without float64, until it is moved to the CPU."""

    device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if any(isinstance(leaf, cls) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError("Cannot convert an MPS Tensor to float64")
        return result


def test_maps_are_summarized_as_on_the_cpu_without_float64() -> None:
    values = drawn(6, 4, 16, 12)
    with pytest.raises(TypeError, match="float64"):
        values.as_subclass(Single).double()
    found, expected = (summarize_maps(maps, 8, True) for maps in (values.as_subclass(Single), values))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.as_subclass(Tensor), other)
    shares = [LayerMaps(zeros=zeros, count=6, size=(16, 12)).sparsity for zeros in (found[2], expected[2])]
    torch.testing.assert_close(*shares, rtol=0, atol=0)
