"""Running a probe does not change the model, whatever its wrapper, and batches do not affect each other."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from functional import Net
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_anomaly import OutlierDetector, TwoSampleCallback, analyze, two_sample_test
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.network.forward import run, usable_layers
from lightning_anomaly.network.hooks import MapCapture
from lightning_anomaly.network.layers import select_layers

IMAGES = torch.randn(150, 1, 9, 9, generator=torch.Generator().manual_seed(0))


class Remembers(nn.Module):
    """Adds its previous input, which it stores in a buffer, in place or as a new tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), how
        self.register_buffer("state", torch.zeros(0), persistent=False)
        self.gradients: list[bool] = []
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.gradients.append(torch.is_grad_enabled())
        self.sizes.append(len(x))
        total = x + self.state if self.state.numel() else x
        if self.how == "in place":
            self.state.resize_(x.shape).copy_(total)
        else:
            self.state = total
        return self.norm(self.conv(total)).amax((2, 3))


def maps_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    capture = MapCapture(select_layers(model), rectify=False, max_map_side=9)
    run(model, ImageSource(inputs, "inputs"), capture)
    return {name: layer.maps for name, layer in capture.maps.items()}


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_buffers_are_restored_after_each_batch(how: str) -> None:
    model = Remembers(how)
    buffer = model.state
    maps = maps_of(model, IMAGES[:70])["conv"]
    assert not any(model.gradients)
    torch.testing.assert_close(maps, model.conv(IMAGES[:70]).detach())
    assert model.state is buffer
    assert buffer.numel() == 0
    model(IMAGES[:5])
    buffer, values = model.state, model.state.clone()
    with pytest.raises(RuntimeError, match="must match"):
        run(model, ImageSource(IMAGES, "inputs"), MapCapture({}))
    assert model.state is buffer
    assert torch.equal(buffer, values)


def test_statistics_are_restored_if_a_forward_switches_a_norm_to_training() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[1].register_forward_pre_hook(lambda norm, args: norm.train() and None)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    maps_of(model, IMAGES[:20])
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    model(IMAGES[:20])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "Fabric": lambda model: Fabric(accelerator="cpu").setup(model),
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_models_give_the_same_maps(kind: str) -> None:
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    (maps,) = maps_of(WRAPPERS[kind](inner), IMAGES[:70]).values()
    torch.testing.assert_close(maps, inner[0](IMAGES[:70]).detach())
    assert inner[1].training
    assert not inner[1].running_mean.any()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(64, [50, 50, 50]), (1000, [150]), (149, [75, 75]), (1, [1] * 150)]
)
def test_batches_have_nearly_equal_sizes_up_to_the_largest(batch_size: int, expected: list[int]) -> None:
    sizes: list[int] = []
    inputs = ImageSource(IMAGES, "inputs", batch_size)
    run(nn.Flatten(), inputs, MapCapture({}), take_output=lambda out: sizes.append(len(out)))
    assert sizes == expected


def test_the_batch_size_is_an_argument() -> None:
    model = Remembers("in place")
    analyze(model, IMAGES, batch_size=30)
    assert set(model.sizes) == {30}
    two_sample_test(model, IMAGES[:75], IMAGES[75:], batch_size=30)
    assert set(model.sizes[5:]) == {25}
    for call in (
        analyze,
        partial(two_sample_test, val_inputs=IMAGES),
        lambda *_, **options: TwoSampleCallback(**options),
    ):
        with pytest.raises(ValueError, match=r"`batch_size` .* Found `batch_size = 0`"):
            call(model, IMAGES, batch_size=0)


def test_inputs_are_unchanged() -> None:
    model = Net(lambda net, images: net.conv(images.add_(1)), conv=nn.Conv2d(1, 2, 3))
    before = IMAGES.clone()
    torch.testing.assert_close(maps_of(model, IMAGES)["conv"], model(before + 0).detach())
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (IMAGES.numpy(), "ndarray"),
        (IMAGES[:0], "none"),
        ((IMAGES, IMAGES), "tuple"),
        ({"pixel_values": IMAGES}, "dict"),
    ],
    ids=["array", "none", "tuple", "dict"],
)
def test_other_inputs_are_refused(inputs: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"`inputs` should .* Found {found}"):
        analyze(nn.Conv2d(1, 2, 3), inputs)
    with pytest.raises(ValueError, match=f"`val_inputs` should .* Found {found}"):
        two_sample_test(nn.Conv2d(1, 2, 3), IMAGES, inputs)


def test_the_number_of_samples_is_an_argument_or_that_of_most_layers() -> None:
    layers = {name: nn.Identity() for name in "abcdef"}
    capture = MapCapture(layers)
    with capture:
        for name, number in zip("abcef", (4, 4, 8, 8, 8), strict=True):
            layers[name](torch.rand(number, 2))
    for name in "ef":  # which do not count
        capture.maps[name].problem = "it is odd"
    for expected, names in ((None, ["a", "b"]), (8, ["c"])):
        usable, n_samples, notes = usable_layers(capture.maps, expected)
        assert (list(usable), n_samples) == (names, expected or 4)
        assert "never called" in notes["d left out"]
        assert "it is odd" in notes["e left out"]
        others = "8 maps where most layers gave 4" if expected is None else "4 maps where the samples are 8"
        assert others in notes["c left out" if expected is None else "a left out"]
        assert len(notes) == 6 - len(names)


def test_functions_in_several_threads_take_turns_with_a_model() -> None:
    """Otherwise one thread's hooks would take the maps of another thread's images."""
    inside, most = 0, 0

    def forward(net: Net, images: Tensor) -> Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        result = net.head(net.conv(images).flatten(1))
        inside -= 1
        return result

    model = Net(forward, conv=nn.Conv2d(1, 2, 3), head=nn.Linear(98, 3))
    first, second = (OutlierDetector(model).fit(IMAGES, progress=False) for _ in range(2))
    work: list[Callable[[], Any]] = [
        lambda: first.search(IMAGES[:90], progress=False).scores,
        lambda: second.search(IMAGES[:90] * 1.1, progress=False).scores,
        lambda: first.score(IMAGES[:70]),
        lambda: OutlierDetector(model).fit(IMAGES, progress=False).score(IMAGES[:5]),
        lambda: analyze(model, IMAGES).outlier_scores,
        lambda: two_sample_test(model, IMAGES[:80], IMAGES[80:]).train_errors,
    ]
    expected = [function() for function in work]
    assert most == 1
    model.train()
    with ThreadPoolExecutor(len(work)) as pool:
        found = list(pool.map(lambda function: function(), work))
    assert most == 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(module.training and not module._forward_hooks for module in model.modules())
