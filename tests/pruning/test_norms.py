"""The norms behind a convolution are those that its output reaches, wherever they stand."""

import copy
import gc
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.pruning.norms import FlowObserver, NormFlow, modules_by_name, observe_flow
from lightning_anomaly.pruning.spread import spread_zeros

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A module whose forward pass is a given function of it and its input."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, padding=1)


def norms(model: nn.Module) -> dict[str, list[str]]:
    return dict(observe_flow(model, IMAGES).norms)


def observed_outside(model: nn.Module) -> NormFlow:
    """As in a pass that somebody else makes, with the state of gradients as it is."""
    with FlowObserver(model) as observer:
        model.eval()(IMAGES)
    return observer.flow


def zeros(flow: NormFlow, model: nn.Module, **filters: list[int]) -> dict[str, set[int]]:
    return spread_zeros(flow, filters, modules_by_name(model))[0]


def hook_count(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    kinds += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_finds_the_norm_by_what_flows_and_not_by_position() -> None:
    # Defined in the order first, second, a, b; called as first -> b, second -> a.
    model = Net(
        lambda net, x: net.a(net.second(torch.relu(net.b(net.first(x))))),
        first=conv(),
        second=conv(4),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
    )
    assert norms(model) == {"first": ["b"], "second": ["a"]}


def test_a_norm_defined_right_behind_but_fed_by_something_else_is_not_found() -> None:
    model = Net(lambda net, x: net.bn(net.skip(x)) + net.conv(x), conv=conv(), bn=nn.BatchNorm2d(4), skip=conv())
    assert norms(model) == {"conv": [], "skip": ["bn"]}


def test_the_norm_of_a_sum_is_behind_all_that_is_in_the_sum() -> None:
    model = Net(lambda net, x: net.bn(net.conv(x) + net.skip(x)), conv=conv(), bn=nn.BatchNorm2d(4), skip=conv())
    flow = observe_flow(model, IMAGES)
    assert flow == NormFlow({"conv": ["bn"], "skip": ["bn"]})
    assert zeros(flow, model, conv=[1, 2], skip=[2, 3]) == {"conv": {1, 2}, "skip": {2, 3}, "bn": {2}}


@pytest.mark.parametrize("other", [lambda net, x: x[:, :1], lambda net, x: net.linear(x)], ids=["input", "linear"])
def test_the_norm_of_a_sum_with_something_else_is_behind_nothing(other) -> None:
    model = Net(
        lambda net, x: net.bn(net.conv(x) + other(net, x)), conv=conv(), bn=nn.BatchNorm2d(4), linear=nn.Linear(6, 6)
    )
    model.conv = nn.Conv2d(3, 3, 3, padding=1)
    model.bn = nn.BatchNorm2d(3)
    assert observe_flow(model, IMAGES) == NormFlow({"conv": []})


def test_finds_the_norm_of_an_output_that_also_goes_elsewhere() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.bn(y) + y

    assert norms(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))) == {"conv": ["bn"]}


def test_finds_both_norms_of_a_shared_convolution() -> None:
    model = Net(
        lambda net, x: net.b(net.conv(torch.relu(net.a(net.conv(x))))),
        conv=nn.Conv2d(3, 3, 1),
        a=nn.BatchNorm2d(3),
        b=nn.BatchNorm2d(3),
    )
    assert observe_flow(model, IMAGES) == NormFlow({"conv": ["a", "b"]})


@pytest.mark.parametrize(
    "forward",
    [lambda net, x: net.bn(net.a(x)) + net.bn(net.b(x)), lambda net, x: net.bn(torch.relu(net.bn(net.a(x))))],
    ids=["two convolutions", "something else"],
)
def test_a_norm_that_takes_something_else_too_is_called_shared(forward) -> None:
    flow = observe_flow(Net(forward, a=conv(), b=conv(), bn=nn.BatchNorm2d(4)), IMAGES)
    assert flow.norms["a"] == ["bn"]
    assert flow.shared == {"bn"}


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)],
    ids=str,
)
def test_finds_the_norm_behind_a_layer_that_keeps_zeros_and_channels(between: nn.Module) -> None:
    model = nn.Sequential(conv(), between, nn.Identity(), nn.BatchNorm2d(4))
    assert norms(model) == {"0": ["3"]}


@pytest.mark.parametrize(
    "between",
    [F.relu, torch.tanh, lambda x: F.dropout(x, 0.5), lambda x: F.max_pool2d(x, 2), lambda x: x * torch.sigmoid(x)],
    ids=["relu", "tanh", "dropout", "max_pool2d", "swish"],
)
def test_finds_the_norm_behind_a_function_that_keeps_zeros_and_channels(between) -> None:
    model = Net(lambda net, x: net.bn(between(net.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4))
    assert observe_flow(model, IMAGES) == NormFlow({"conv": ["bn"]})
    with torch.inference_mode():
        assert observed_outside(model) == NormFlow({"conv": ["bn"]})


@pytest.mark.parametrize("between", [nn.Sigmoid(), nn.Softplus(), nn.Softmax(1)], ids=lambda m: type(m).__name__)
def test_does_not_look_behind_other_layers_and_says_so(between: nn.Module) -> None:
    model = nn.Sequential(conv(), between, nn.BatchNorm2d(4))
    assert observe_flow(model, IMAGES) == NormFlow({"0": []}, lost={"0": ["2"]})


def test_finds_the_norm_behind_a_norm_which_makes_zeros_too_once_it_is_masked() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    assert observe_flow(model, IMAGES) == NormFlow({"0": ["1"], "1": ["3"]})


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6])], ids=lambda m: type(m).__name__)
def test_nothing_is_behind_a_norm_that_mixes_channels(norm: nn.Module) -> None:
    model = nn.Sequential(conv(), norm, nn.ReLU(), nn.BatchNorm2d(4))
    assert observe_flow(model, IMAGES) == NormFlow({"0": ["1"]})


def test_finds_the_place_of_each_channel_in_a_concatenation() -> None:
    model = Net(
        lambda net, x: net.bn(torch.cat([F.relu(net.a(x)), x, net.b(x)], 1)[:, 2:]),
        a=conv(),
        b=conv(),
        bn=nn.BatchNorm2d(9),
    )
    assert norms(model) == {"a": [["bn", [2, 3], [0, 1]]], "b": [["bn", [0, 1, 2, 3], [5, 6, 7, 8]]]}


def test_finds_every_norm_of_a_dense_block() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        features = [net.a(x)]
        features.append(net.b(F.relu(net.bn1(torch.cat(features, 1)))))
        return net.bn2(torch.cat(features, 1))

    model = Net(forward, a=conv(), b=conv(4), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(8))
    first, second = ["bn2", [0, 1, 2, 3], [0, 1, 2, 3]], ["bn2", [0, 1, 2, 3], [4, 5, 6, 7]]
    assert norms(model) == {"a": ["bn1", first], "b": [second]}


@pytest.mark.parametrize(
    "shuffle", [nn.ChannelShuffle(2), lambda x: x.view(2, 2, 2, 6, 6).transpose(1, 2).flatten(1, 2)]
)
def test_finds_the_place_of_each_channel_in_a_shuffle(shuffle) -> None:
    model = Net(lambda net, x: net.bn(shuffle(net.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4))
    assert norms(model) == {"conv": [["bn", [0, 2, 1, 3], [0, 1, 2, 3]]]}


def test_a_filter_may_become_several_channels() -> None:
    model = Net(lambda net, x: net.bn(net.pool(net.conv(x)).flatten(1)), conv=conv(), pool=nn.AdaptiveAvgPool2d(2))
    model.bn = nn.BatchNorm1d(16)
    flow = observe_flow(model, IMAGES)
    assert zeros(flow, model, conv=[2]) == {"conv": {2}, "bn": {8, 9, 10, 11}}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_looks_behind_a_convolution_of_single_channels(multiplier: int) -> None:
    model = nn.Sequential(
        conv(),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4 * multiplier, 3, groups=4, bias=False),
        nn.BatchNorm2d(4 * multiplier),
    )
    flow = observe_flow(model, IMAGES)
    assert flow == NormFlow({"0": ["1"], "3": ["4"], "1": ["3"]})
    behind = {i * multiplier + k for i in (0, 2) for k in range(multiplier)}
    assert zeros(flow, model, **{"0": [0, 2]}) == {"0": {0, 2}, "1": {0, 2}, "3": behind, "4": behind}


def test_a_group_of_channels_is_zero_if_all_are() -> None:
    model = nn.Sequential(conv(), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6))
    flow = observe_flow(model, IMAGES)
    assert zeros(flow, model, **{"0": [0, 2, 3]}) == {"0": {0, 2, 3}, "1": {3, 4, 5}, "2": {3, 4, 5}}


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)], ids=["bias", "one group"])
def test_does_not_look_behind_another_convolution(layer: nn.Module) -> None:
    model = nn.Sequential(conv(), layer, nn.BatchNorm2d(4))
    assert observe_flow(model, IMAGES) == NormFlow({"0": [], "1": ["2"]})


def test_a_tensor_written_to_in_between_is_the_sum_that_it_is_then() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.conv(x)
        y += net.skip(x) if net.both else x.mean(1, keepdim=True)
        return net.bn(y)

    model = Net(forward, conv=conv(), skip=conv(), bn=nn.BatchNorm2d(4))
    for inference in (False, True):
        with torch.inference_mode(inference):
            model.both = False
            assert observed_outside(model).norms == {"conv": []}
            model.both = True
            assert observed_outside(model).norms == {"conv": ["bn"], "skip": ["bn"]}


def test_batch_norm_takes_a_view_only_with_the_channels_in_their_place() -> None:
    layers = {"conv": nn.Conv2d(3, 6, 1), "bn": nn.BatchNorm1d(6), "bn2d": nn.BatchNorm2d(6)}
    model = Net(lambda net, x: net.bn(net.conv(x).flatten(2)), **layers)
    assert norms(model) == {"conv": ["bn"]}
    with torch.inference_mode():  # whose tensors know of no views
        assert norms(model) == {"conv": ["bn"]}
    # 6 channels, 6 rows: the shape is the same, the axis is not.
    assert norms(Net(lambda net, x: net.bn2d(net.conv(x).transpose(1, 2)), **layers)) == {"conv": []}


def test_layer_norm_takes_any_view() -> None:
    model = Net(lambda net, x: net.norm(net.conv(x).permute(0, 2, 3, 1)), conv=conv(), norm=nn.LayerNorm(4))
    assert norms(model) == {"conv": ["norm"]}


def test_finds_a_norm_called_by_keyword() -> None:
    model = Net(lambda net, x: net.bn(input=net.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    assert norms(model) == {"conv": ["bn"]}


def test_a_norm_called_without_a_tensor_is_left_alone() -> None:
    class OddNorm(nn.Module):
        def forward(self) -> float:
            return 2.0

    model = Net(lambda net, x: net.conv(x) * net.odd(), conv=conv(), odd=OddNorm())
    assert norms(model) == {"conv": []}


def test_memory_that_is_used_again_is_not_mistaken_for_an_output() -> None:
    # The output dies, and what comes next takes its memory and its id as often as the allocators like.
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        for _ in range(50):
            shape = net.conv(x).shape
            net.bn(torch.rand(shape))
        return x

    model = Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))
    assert norms(model) == {"conv": []}


def test_keeps_no_output_alive() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    with FlowObserver(model) as observer:
        for _ in range(20):
            model(IMAGES)
        gc.collect()
        assert len(observer._tracker) == 0


def test_watches_any_pass_and_adds_up_what_several_show() -> None:
    model = Net(
        lambda net, x: net.b(net.conv(x)) if net.training else net.a(net.conv(x)),
        conv=conv(),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
    )
    observer = FlowObserver(model)
    observer.attach()
    model(IMAGES).sum().backward()
    observer.remove()
    model.eval()
    with observer, torch.inference_mode():
        model(IMAGES)
    assert observer.flow == NormFlow({"conv": ["b", "a"]})


def test_is_not_confused_by_full_backward_hooks() -> None:
    # They wrap what goes into and out of a module, so the input is a view of the output and not the same object.
    model = nn.Sequential(conv(), nn.BatchNorm2d(4))
    for layer in model:
        layer.register_full_backward_hook(lambda *_: None)
    with FlowObserver(model) as observer:
        model(IMAGES)
    assert observer.flow.norms == {"0": ["1"]}


def test_sees_through_a_compiled_model_and_leaves_it_compiled() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    inner = nn.Sequential(conv(), nn.BatchNorm2d(4))
    model = nn.Sequential(torch.compile(inner, backend=backend), nn.ReLU())
    model(IMAGES)
    assert len(graphs) == 1
    assert norms(model) == {"0.0": ["0.1"]}
    assert set(modules_by_name(model)) == {"", "0", "0.0", "0.1", "1"}
    assert len(graphs) == 1
    model.eval()(IMAGES)  # compiled anew, as ever
    assert len(graphs) == 2


def test_observers_that_overlap_leave_compiled_models_compiled_in_whatever_order_they_end() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(nn.Sequential(conv(), nn.BatchNorm2d(4)), backend=backend)
    model(IMAGES)
    assert len(graphs) == 1
    flow, maps = FlowObserver(model), MapCapture(select_layers(model))
    for first, last in ((flow, maps), (maps, flow)):
        flow.attach()
        maps.attach()
        model(IMAGES)
        first.remove()
        last.remove()
    assert flow.flow.norms == {"0": ["1"]}
    assert maps.maps["0"].count == 2 * len(IMAGES)
    torch.compiler.reset()
    model(IMAGES)
    assert len(graphs) == 2  # compiled anew: not eager


def test_hooks_are_gone_afterwards_and_the_users_own_are_not() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda *_: None)
    before = hook_count(model)
    observer = FlowObserver(model)
    with observer:
        assert hook_count(model) > before
        observer.attach()  # a second time: still one set of hooks
    assert hook_count(model) == before
    observer.remove()
    observe_flow(model, IMAGES)
    assert hook_count(model) == before


def test_hooks_are_gone_after_an_exception() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        net.bn(net.conv(x))
        raise RuntimeError("on purpose")

    model = Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError, match="on purpose"), FlowObserver(model):
        model(IMAGES)
    assert hook_count(model) == 0
    with pytest.raises(RuntimeError, match="on purpose"):
        observe_flow(model, IMAGES)
    assert hook_count(model) == 0
    assert model.training
    assert model.bn.num_batches_tracked == 1  # the watched pass, which was a training pass; not the observing one


def test_a_model_copied_while_it_is_watched_does_not_copy_the_observer() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4))
    with FlowObserver(model) as observer:
        copied = copy.deepcopy(model)
        copied(IMAGES)
        assert observer.flow.norms == {}
        model(IMAGES)
        assert observer.flow.norms == {"0": ["1"]}


class Restless(nn.Module):
    """Draws random numbers, counts its calls, swaps a buffer, and has a layer that is kept in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.frozen = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))
        self.train()
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.calls * 2
        return self.frozen(F.dropout(self.bn(self.conv(x)), 0.5))


@pytest.mark.parametrize("inference", [False, True])
def test_observing_leaves_no_trace(inference: bool) -> None:
    model = Restless()
    model(IMAGES).sum().backward()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = [id(buffer) for buffer in model.buffers()]
    random_state = torch.get_rng_state(), random.getstate()
    with torch.inference_mode(inference):
        assert observe_flow(model, IMAGES).norms == {"conv": ["bn"], "bn": ["frozen"]}
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [id(buffer) for buffer in model.buffers()] == buffers
    assert torch.equal(torch.get_rng_state(), random_state[0])
    assert random.getstate() == random_state[1]
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def test_a_tuple_is_several_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.bn(self.conv(x)) * scale

    assert observe_flow(Two(), (IMAGES, 2.0)).norms == {"conv": ["bn"]}


def test_the_inner_workings_of_a_parametrization_are_no_layers() -> None:
    model = nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU())
    assert set(modules_by_name(model)) == {"", "0", "1"}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_is_refused_and_stays_lazy() -> None:
    model = nn.Sequential(conv(), nn.LazyBatchNorm2d())
    with pytest.raises(
        ValueError, match=r"`model` should be initialised: run it once before\. Found lazy \['1\.weight"
    ):
        observe_flow(model, IMAGES)
    assert model[1].has_uninitialized_params()
