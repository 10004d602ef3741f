"""The right layers are watched, their maps are taken as they were, and nothing is left on the model."""

import copy
import random
import warnings
from collections import UserList
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_anomaly import analyze, find_outliers, two_sample_test
from lightning_anomaly.capture import hooks
from lightning_anomaly.capture.hooks import MapCapture, evaluating, taking_alone
from lightning_anomaly.capture.layers import modules_by_name, select_layers, unseen_layers
from lightning_anomaly.capture.maps import LayerMaps, map_statistics, pool_maps
from lightning_anomaly.capture.probe import usable_layers

IMAGES = torch.randn(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The networks and maps that a test makes are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))


def hooks_on(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def take(layer: nn.Module, *batches, **options) -> LayerMaps:
    """What a capture takes from a layer that is called with these batches, one in each pass."""
    taken = MapCapture({"layer": layer}, **{"rectify": False, "max_map_side": 1000, **options})
    for batch in batches:
        with taken:
            layer(batch)
    return taken.maps["layer"]


class Returns(nn.Module):
    """Gives what it is told to."""

    def forward(self, value):
        return value


# which layers


def test_every_convolution_is_selected_in_the_model_s_order():
    model = nn.ModuleDict(
        {
            "sound": nn.Conv1d(1, 2, 3),
            "head": nn.Linear(3, 3),
            "list": nn.ModuleList([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 1, 2)]),
            "volume": nn.Conv3d(1, 2, 3),
            "lazy": nn.LazyConv2d(4, 3),
            "weighted": parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
        }
    )
    assert list(select_layers(model)) == ["sound", "list.0", "list.2", "volume", "lazy", "weighted"]
    assert select_layers(model)["list.2"] is model["list"][2]
    assert not any("parametrizations" in name for name in modules_by_name(model))


def test_a_model_that_is_itself_a_convolution_has_one_layer_without_a_name():
    layer = nn.Conv2d(1, 1, 1)
    assert select_layers(layer) == {"": layer}
    assert select_layers(nn.Linear(2, 2)) == {}


def test_named_layers_are_selected_in_the_order_asked_for_and_need_not_be_convolutions():
    model = network()
    assert list(select_layers(model, ["2", "1"])) == ["2", "1"]
    assert select_layers(model, iter(["0"])) == {"0": model[0]}


def test_a_shared_layer_is_selected_once():
    shared = nn.Conv2d(1, 1, 1)
    assert list(select_layers(nn.Sequential(shared, nn.ReLU(), shared))) == ["0"]


def test_a_shared_layer_may_be_asked_for_by_each_of_its_names():
    shared = nn.Sequential(nn.Conv2d(1, 1, 1))
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared, "none": nn.Identity()})})
    model["b"].none = None
    assert select_layers(model, ["b.c.0", "a.0"]) == {"b.c.0": shared[0], "a.0": shared[0]}
    assert select_layers(torch.compile(model, backend="eager"), ["b.c.0"]) == {"b.c.0": shared[0]}
    for name in ("b.none", "b.none.0", "b.d", "b.c.1"):
        with pytest.raises(ValueError, match=r"are \['a\.0'\]\."):
            select_layers(model, [name])


def test_a_layer_that_does_not_exist_is_an_error_that_lists_those_that_do():
    with pytest.raises(ValueError, match=r"`layers` should name layers.*Found \['3', 'x'\].*are \['0', '2'\]\."):
        select_layers(network(), ["0", "3", "x"])
    with pytest.raises(ValueError, match=r"`signal_layers` should name layers of the model\. Found \['x'\]"):
        select_layers(network(), ["x"], argument="signal_layers")


@pytest.mark.parametrize("layers", ["0", "", [], ()])
def test_layers_that_are_a_string_or_empty_are_an_error(layers):
    with pytest.raises(ValueError, match=r"`layers` should be a list of layer names or None\. Found"):
        select_layers(network(), layers)


@pytest.fixture(scope="module")
def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; models that use it are still about
        return torch.jit.script(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 1, 3)))


def test_convolutions_of_a_script_module_are_skipped_with_a_note(scripted):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), scripted)
    assert list(select_layers(model)) == ["0"]
    note = unseen_layers(model)["scripted"]
    assert note == "Convolutions in ScriptModules are skipped, as these accept no hooks: ['1.0', '1.2']."
    assert unseen_layers(network()) == {}
    with MapCapture(select_layers(model)) as taken:
        model(IMAGES)
    assert taken.maps["0"].count == 6


def test_a_script_module_asked_for_by_name_is_an_error(scripted):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), scripted)
    with pytest.raises(
        ValueError, match=r"`layers` should name layers that accept hooks\. Found ScriptModules \['1.0'\]"
    ):
        select_layers(model, ["0", "1.0"])


# what is taken


def test_maps_are_what_the_layer_gave_in_the_order_of_the_samples():
    model = network()
    expected = model[0](IMAGES).detach()
    taken = MapCapture(select_layers(model), rectify=False, max_map_side=7)
    for batch in IMAGES.split(4):
        with taken:
            model(batch)
    maps = taken.maps["0"]
    torch.testing.assert_close(maps.maps, expected)
    assert maps.count == 6
    assert maps.size == (7, 7)
    assert maps.problem is None
    assert not maps.maps.requires_grad
    assert taken.maps["2"].size == (5, 5)


def test_a_relu_in_place_behind_the_layer_does_not_change_what_was_taken():
    model = network()
    with MapCapture(select_layers(model), rectify=False) as taken:
        model(IMAGES)
    assert (taken.maps["0"].maps < 0).any()
    with torch.no_grad():
        torch.testing.assert_close(taken.maps["0"].maps, model[0](IMAGES))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_was_taken_is_a_copy(dtype):
    values = torch.randn(4, 2, 3, 3, dtype=dtype)
    before = values.clone()
    maps = take(Returns(), values)
    values.zero_()
    assert torch.equal(maps.maps, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_with_minus_infinity_is_not_rectified_to_a_finite_one(dtype):
    values = torch.randn(20, 3, 4, 4, dtype=dtype)
    values[7, 1, 2, 3] = -torch.inf
    maps = take(Returns(), values, rectify=True).maps
    finite = maps.isfinite().flatten(2).all(2)
    assert not finite[7, 1]
    assert finite.sum() == 20 * 3 - 1
    assert torch.equal(maps[finite], values.clamp(min=0).to(maps)[finite])


def test_rectified_maps_have_no_negative_value_and_leave_the_model_s_own_alone():
    values = torch.randn(4, 2, 3, 3)
    before = values.clone()
    maps = take(Returns(), values, rectify=True)
    assert torch.equal(maps.maps, before.clamp(min=0))
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_float32_without_loss(dtype):
    values = torch.randn(4, 2, 3, 3).to(dtype)
    maps = take(Returns(), values).maps
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(maps.to(dtype), values)


def test_the_limit_is_respected_across_and_within_batches():
    values = torch.arange(10.0)[:, None, None, None].expand(10, 2, 3, 3)
    taken = MapCapture({"layer": (layer := Returns())}, limit=7)
    counts = []
    for batch in values.split(3):
        with taken:
            layer(batch)
        counts.append((taken.maps["layer"].count, taken.full))
    assert counts == [(3, False), (6, False), (7, True), (7, True)]
    assert taken.maps["layer"].maps[:, 0, 0, 0].tolist() == list(range(7))
    assert not MapCapture({}, limit=3).full


def test_a_layer_of_parts_of_the_samples_does_not_end_the_capture():
    """It has as many maps as are asked for after fewer samples; they would be taken for as many samples."""
    values = torch.arange(10.0)[:, None, None, None].expand(10, 2, 3, 3)
    layers = {name: Returns() for name in ("first", "second", "parts")}
    taken = MapCapture(layers, limit=10)
    for batch in values.split(5):
        assert not taken.full
        with taken:
            layers["first"](batch)
            layers["second"](batch)
            layers["parts"](batch.repeat(2, 1, 1, 1))
    assert taken.full
    assert taken.maps["first"].count == taken.maps["second"].count == 10
    assert taken.maps["parts"].problem == "it gave 10 maps where most layers gave 5"


def test_a_layer_that_some_passes_leave_out_is_told_and_does_not_wait_for_more():
    """It would have as many maps in the end, of other samples."""
    values = torch.arange(20.0)[:, None, None, None].expand(20, 2, 3, 3)
    layers = {name: Returns() for name in ("always", "later", "late")}
    taken = MapCapture(layers, limit=10)
    for number, batch in enumerate(values.split(5)):
        if taken.full:
            break
        with taken:
            layers["always"](batch)
            if number % 2:
                layers["later"](batch)
    assert number == 2
    assert taken.maps["always"].count == 10
    assert taken.maps["later"].problem == "it gave 5 maps where most layers gave 10"
    assert taken.maps["late"].problem is None


def test_layers_that_are_told_have_no_say_in_how_many_samples_there_are():
    values = torch.arange(20.0)[:, None, None, None].expand(20, 2, 3, 3)
    layers = {name: Returns() for name in ("a", "b", "x", "y", "z")}
    taken = MapCapture(layers, limit=20)
    for number, batch in enumerate(values.split(10)):
        with taken:
            for name, layer in layers.items():
                if number == 0 or name in "ab":
                    layer(batch)
    usable, n_samples, notes = usable_layers(taken.maps)
    assert (list(usable), n_samples) == (["a", "b"], 20)
    assert all("it gave 10 maps where most layers gave 20" in note for note in notes.values())


def test_without_a_limit_whoever_knows_the_number_of_samples_judges():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), Transposed(), nn.Linear(4, 3), nn.Linear(3, 3))
    samples = torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="The output is not compared: it has 640 samples"):
        assert list(two_sample_test(network, samples[:40], samples[40:]).layers) == ["0"]


class Transposed(nn.Module):
    """Positions as samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)


def test_the_first_call_in_a_pass_counts():
    layer = Returns()
    taken = MapCapture({"layer": layer}, rectify=False)
    for step in range(2):
        with taken:
            for call in range(3):
                layer(torch.full((2, 1, 1, 1), 10.0 * step + call))
    assert taken.maps["layer"].maps.flatten().tolist() == [0, 0, 10, 10]


def test_empty_batches_are_passed_over():
    empty, full = torch.zeros(0, 2, 3, 3), torch.ones(2, 2, 3, 3)
    maps = take(Returns(), empty, full, empty, full, torch.zeros(0, 5, 1, 1))
    assert (maps.count, maps.problem, maps.maps.shape) == (4, None, (4, 2, 3, 3))
    nothing = take(Returns(), empty)
    assert (nothing.count, nothing.batches, nothing.problem) == (0, [], None)


def test_large_outputs_are_copied_in_pieces_that_change_nothing(monkeypatch):
    values = torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = take(Returns(), values, max_map_side=2)
    monkeypatch.setattr(hooks, "_PIECE", 100)
    sizes = []
    monkeypatch.setattr(hooks, "map_statistics", lambda maps: sizes.append(len(maps)) or map_statistics(maps))
    pieces = take(Returns(), values, max_map_side=2)
    assert sizes == [2, 2, 2, 1]
    assert torch.equal(pieces.maps, whole.maps)
    assert torch.equal(pieces.zeros, whole.zeros)
    assert pieces.count == whole.count == 7


def test_layers_without_pixels_and_on_volumes_and_sound_are_taken():
    for shape in ((3, 4), (3, 4, 20), (3, 4, 2, 3, 4)):
        maps = take(Returns(), torch.randn(*shape))
        assert maps.maps.shape == shape
        assert maps.size == shape[2:]


# what cannot be taken is said


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ([(torch.ones(2, 1, 1, 1),)], "its output is a tuple, not a tensor"),
        ([None], "its output is a NoneType, not a tensor"),
        ([torch.ones(3)], "its output has shape (3,), not (samples, filters, ...)"),
        ([torch.ones(1, 1, 1, 1, 1, 1)], "its output has shape (1, 1, 1, 1, 1, 1), not (samples, filters, ...)"),
        ([torch.ones(2, 1, 1, 1).long()], "its output has type torch.int64"),
        ([torch.ones(2, 1, 1, 1).bool()], "its output has type torch.bool"),
        ([torch.ones(2, 1, 1, 1, dtype=torch.complex64)], "its output has type torch.complex64"),
        ([torch.ones(2, 3, 1, 1), torch.ones(2, 4, 1, 1)], "its number of filters changes, from 3 to 4"),
        ([torch.ones(2, 3, 4, 4), torch.ones(2, 3, 5, 4)], "the size of its maps changes, from (4, 4) to (5, 4)"),
        ([torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4)], "the size of its maps changes, from (4, 4) to (4,)"),
    ],
)
def test_an_output_that_is_no_map_is_a_problem_and_no_error(outputs, problem):
    maps = take(Returns(), *outputs, torch.ones(2, 3, 4, 4))
    assert maps.problem == problem
    assert maps.count == 2 * (len(outputs) - 1)


def test_an_unbatched_output_of_a_convolution_is_a_problem():
    maps = take(nn.Conv2d(1, 2, 3), torch.ones(1, 5, 5))
    assert maps.problem == "its output has shape (2, 3, 3), not (samples, filters, ...)"


def test_a_failure_while_taking_is_a_problem_and_no_error(monkeypatch):
    monkeypatch.setattr(hooks, "pool_maps", lambda *_: 1 / 0)
    assert take(Returns(), torch.ones(2, 1, 1, 1)).problem.startswith("taking its maps failed with ZeroDivisionError(")


# pooling and sparsity


@pytest.mark.parametrize(
    ("size", "side", "windows"),
    [
        ((8, 8), 8, (1, 1)),
        ((9, 9), 8, (2, 2)),
        ((16, 5), 8, (2, 1)),
        ((13, 30), 4, (4, 8)),
        ((7, 7), 1, (7, 7)),
        ((64,), 8, (1,)),
        ((65,), 8, (2,)),
        ((200,), 3, (23,)),
        ((4, 4, 4), 8, (1, 1, 1)),
        ((5, 4, 9), 8, (2, 1, 3)),
        ((3, 3, 3), 1, (3, 3, 3)),
    ],
)
def test_pooling_averages_windows_until_no_side_is_larger(size, side, windows):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = pool_maps(maps, side)
    for sample in range(2):
        for index in range(3):
            expected = oracle.pooled(maps[sample, index].numpy(), windows)
            np.testing.assert_allclose(pooled[sample, index].numpy(), expected, rtol=0, atol=1e-12)


def test_pooling_never_leaves_more_pixels_than_allowed():
    for side in range(1, 10):
        for size in range(1, 40):
            assert max(pool_maps(torch.zeros(1, 1, size, 5), side).shape[2:]) <= side
            assert pool_maps(torch.zeros(1, 1, size), side).shape[2] <= side**2
            assert pool_maps(torch.zeros(1, 1, size, size, 2), side).shape[2:].numel() <= max(1, side**2)
    assert pool_maps(maps := torch.zeros(3, 2), 1) is maps


def test_sparsity_is_counted_before_pooling_and_after_the_sign():
    values = torch.tensor([[-1.0, 1, 0, 5], [2, -3, 4, 1]]).reshape(2, 1, 2, 2)
    for rectify in (True, False):
        maps = take(Returns(), values[:1], values[1:], rectify=rectify, max_map_side=1)
        assert maps.maps.shape == (2, 1, 1, 1)
        assert maps.sparsity.tolist() == [3 / 8]
        assert maps.size == (2, 2)


def test_nan_counts_as_not_sparse():
    assert take(Returns(), torch.full((2, 1, 2, 2), torch.nan)).sparsity.tolist() == [0]


# nothing is left behind


def test_hooks_are_only_on_the_model_inside():
    model = network()
    with MapCapture(select_layers(model)):
        assert hooks_on(model) == 2
    assert hooks_on(model) == 0


class Fails(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(error):
    model = network()
    model.append(Fails(error("stop")))
    with pytest.raises(error, match="stop"), MapCapture(select_layers(model)):
        model(IMAGES)
    assert hooks_on(model) == 0


def test_hooks_of_others_stay():
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    with MapCapture(select_layers(model)):
        assert hooks_on(model) == 3
    assert hooks_on(model) == 1


def test_attaching_and_removing_twice_does_no_more_than_once():
    model = network()
    taken = MapCapture(select_layers(model))
    taken.attach()
    taken.attach()
    assert hooks_on(model) == 2
    taken.remove()
    taken.remove()
    assert hooks_on(model) == 0


def test_hooks_that_cannot_all_be_put_on_are_taken_off_again():
    class Refuses(nn.Module):
        def register_forward_hook(self, *_, **__):
            raise RuntimeError("no hooks")

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Refuses())
    with pytest.raises(RuntimeError, match="no hooks"):
        MapCapture({"0": model[0], "1": model[1]}).attach()
    assert hooks_on(model) == 0


def test_a_copy_of_the_model_made_inside_does_not_copy_the_maps():
    model = network()
    with MapCapture(select_layers(model)) as taken:
        model(IMAGES)
        copy.deepcopy(model)(IMAGES)
    assert taken.maps["0"].count == 6


@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_model_is_captured_and_compiled_again_afterwards(before):
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph.forward

    model = network()
    expected = model[0](IMAGES).detach()
    compiled = torch.compile(model, backend=backend)
    if before:
        compiled(IMAGES)
    with MapCapture(select_layers(compiled), rectify=False) as taken:
        compiled(IMAGES)
    assert list(taken.maps) == ["0", "2"]
    torch.testing.assert_close(taken.maps["0"].maps, expected)
    assert len(calls) == before
    compiled(IMAGES)
    assert len(calls) == 1
    torch._dynamo.reset()


def test_captures_of_compiled_models_may_overlap_and_end_in_any_order():
    model = torch.compile(network(), backend="eager")
    first, second = (MapCapture(select_layers(model)) for _ in range(2))
    for one, other in pairwise([first, second, first]):
        one.attach()
        other.attach()
        one.remove()
        model(IMAGES)
        other.remove()
        assert hooks_on(model) == 0
    assert (first.maps["0"].count, second.maps["0"].count) == (6, 6)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


# evaluation mode


class Watched(nn.Module):
    """Notes which of its modules are in training mode and draws random numbers; its own `eval` does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Dropout()
        self.frozen.training = False

    def eval(self):
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [module.training for module in self.modules()]
        torch.rand(3)
        np.random.rand()
        random.random()
        return self.drop(self.frozen(self.norm(x)))


@pytest.mark.parametrize("fails", [True, False])
def test_evaluation_gives_back_every_module_s_own_flag_and_the_random_state(fails):
    model = Watched()
    flags = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state, others = torch.get_rng_state(), (random.getstate(), np.random.get_state(legacy=False))
    try:
        with evaluating(model):
            model(torch.randn(4, 2))
            assert not any(model.seen)
            if fails:
                raise KeyError("stop")
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == flags == [True, True, False, True]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_equal((random.getstate(), np.random.get_state(legacy=False)), others)


class Gradients(nn.Module):
    """Notes whether gradients are kept, which takes several times the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)
        self.kept: UserList[bool] = UserList()  # a list would be given back

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(torch.is_grad_enabled())
        return self.head(self.conv(x).amax((2, 3)))


@pytest.mark.parametrize(
    "run",
    [analyze, find_outliers, lambda model, images: two_sample_test(model, images[:75], images[75:])],
    ids=["analyze", "find_outliers", "two_sample_test"],
)
def test_no_gradient_is_kept_of_a_model_that_runs_on_a_probe(run: Callable[[nn.Module, Tensor], object]) -> None:
    model = Gradients()
    run(model, torch.randn(150, 1, 9, 9))
    assert set(model.kept) == {False}
    assert torch.is_grad_enabled()


def test_a_summary_takes_the_place_of_the_maps() -> None:
    maps = torch.randn(4, 3, 5, 5)
    taken = take(nn.Identity(), maps, summary=lambda maps: maps.amax((2, 3)))
    assert torch.equal(taken.maps, maps.amax((2, 3)))
    assert taken.size == (5, 5)
    assert taken.count == 4


def test_whoever_runs_the_model_takes_alone() -> None:
    layer = nn.Identity()
    waiting, running = (MapCapture({"layer": layer}, rectify=False) for _ in range(2))
    mine, theirs = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 4, 4)
    with waiting:
        with taking_alone(running), running:
            layer(theirs)
        layer(mine)
        with pytest.raises(RuntimeError), taking_alone(running), running:
            raise RuntimeError
        layer(mine)
    assert torch.equal(running.maps["layer"].maps, theirs)
    assert torch.equal(waiting.maps["layer"].maps, mine)  # the first call of the pass


def test_a_model_that_another_thread_runs_meanwhile_is_taken_too() -> None:
    layer = nn.Identity()
    elsewhere = MapCapture({"layer": layer}, rectify=False)

    def run() -> None:
        with elsewhere:
            layer(IMAGES)

    with taking_alone(MapCapture({})), ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    assert elsewhere.maps["layer"].count == len(IMAGES)
