"""The norm channels behind masked filters are those that depend only on them, in any architecture.

In common networks this is found by an independent experiment.
"""

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from functional import Net, lived_in
from torch import Tensor, nn
from trainers import hook_count

from lightning_anomaly.pruning import mask_filters
from lightning_anomaly.pruning.norms import call_model, find_norms

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(inputs: int = 3, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def found(model: nn.Module, inputs: Tensor = IMAGES, **filters: list[int]) -> dict[str, list[int]]:
    return find_norms(lived_in(model), filters, partial(call_model, model, inputs)).channels


KEEP = {
    "in place": F.relu_,
    "gelu": F.gelu,
    "padded pooling": lambda x: F.avg_pool2d(x, 3, padding=1),
    "one pixel": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1)),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "centered": lambda x: x - x.mean((2, 3), keepdim=True),
    "flatten": lambda x: x.flatten(2)[..., None],
}
MAKE_SOMETHING = {"sigmoid": torch.sigmoid, "mean": lambda x: x + x.mean(1, True)}


@pytest.mark.parametrize("between", [*KEEP, *MAKE_SOMETHING])
def test_norms_are_found_behind_functions_that_keep_zeros_and_channels(between: str) -> None:
    function = {**KEEP, **MAKE_SOMETHING}[between]
    model = Net(lambda net, x: net.bn(function(net.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4))
    for samples in (1, 2):
        expected = {"bn": [1, 3]} if between in KEEP else {}
        assert found(model, IMAGES[:samples], conv=[1, 3]) == expected


def test_zeros_of_a_rectifier_are_not_masked_filters() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = net.conv(x)
        return net.bn2(F.relu(-net.bn(torch.cat([F.relu(x), F.relu(-x)], 1))))

    model = Net(forward, conv=conv(), bn=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8))
    for samples in (1, 2):
        assert found(model, IMAGES[:samples], conv=[2]) == {"bn": [2, 6], "bn2": [2, 6]}


@pytest.mark.parametrize("samples", [1, 4])
def test_norms_behind_a_linear_layer_are_not_found(samples: int) -> None:
    layers = {"conv": conv(), "linear": nn.Linear(4, 50), "bn": nn.BatchNorm1d(50)}
    model = Net(lambda net, x: net.bn(F.relu(net.linear(net.conv(x).mean((2, 3))))), **layers)
    result = find_norms(model, {"conv": [0, 1, 2]}, partial(call_model, model, torch.randn(samples, 3, 6, 6)))
    assert (result.channels, result.mixing) == ({}, [])


@pytest.mark.parametrize(
    ("other", "expected"),
    [(lambda net, x: net.skip(x), [2]), (lambda net, x: x[:, :1], []), (lambda net, x: F.pad(x, (0,) * 5 + (1,)), [3])],
    ids=["filters", "input", "padding"],
)
def test_a_sum_is_0_where_all_its_terms_are(other: Callable[..., Tensor], expected: list[int]) -> None:
    model = Net(lambda net, x: net.bn(net.conv(x) + other(net, x)), conv=conv(), bn=nn.BatchNorm2d(4), skip=conv())
    assert found(model, conv=[1, 2, 3], skip=[0, 2]).get("bn", []) == expected


def test_a_filter_may_become_several_channels() -> None:
    layers = {"conv": conv(), "bn": nn.BatchNorm1d(16)}
    model = Net(lambda net, x: net.bn(F.adaptive_avg_pool2d(net.conv(x), 2).flatten(1)), **layers)
    assert found(model, conv=[2]) == {"bn": [8, 9, 10, 11]}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (conv(4, 8, groups=4, bias=False), [0, 1, 4, 5, 6, 7]),
        (conv(4, 6, groups=2, bias=False), [0, 3, 4, 5]),
        (nn.ConvTranspose2d(4, 8, 2, groups=4, bias=False), [0, 1, 4, 5, 6, 7]),
        (conv(4, 6, groups=2), [0]),
        (conv(4, 6, bias=False), [0]),
    ],
    ids=["depthwise", "half a group", "transposed", "bias", "one group"],
)
def test_a_convolution_without_bias_gives_zeros_for_a_group_of_zeros(layer: nn.Module, expected: list[int]) -> None:
    filters = [7] if layer.out_channels == 8 else [0]
    layers = {"conv": conv(), "layer": layer, "a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(layer.out_channels)}
    model = Net(lambda net, x: net.b(net.layer(F.relu(net.a(net.conv(x))))), **layers)
    assert found(model, conv=[0, 2, 3], layer=filters) == {"a": [0, 2, 3], "b": expected}


def test_channels_of_shared_layers_must_be_0_in_every_call() -> None:
    layers = {"a": conv(3, 3), "b": conv(3, 3), "bn": nn.BatchNorm2d(3), "bn2": nn.BatchNorm2d(3)}
    model = Net(lambda net, x: net.bn2(net.a(F.relu(net.bn(net.a(x))))), **layers)
    assert found(model, a=[1]) == {"bn": [1], "bn2": [1]}
    model = Net(lambda net, x: net.bn2(net.bn(net.a(x))) + net.bn(net.b(x)), **layers)
    result = find_norms(model, {"a": [1, 2], "b": [0, 2]}, partial(call_model, model, IMAGES))
    assert result.channels == {"bn": [2], "bn2": [2]}
    assert result.called == {"a", "b"}


@pytest.mark.parametrize("inference", [False, True])
def test_the_search_does_not_change_the_model(inference: bool) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x += torch.rand(())
        return net.frozen(F.dropout(net.bn(net.conv(x)), 0.5))

    model = lived_in(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), frozen=nn.BatchNorm2d(4).eval()))
    images = IMAGES.clone()
    flags, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    before = torch.get_rng_state()
    with torch.inference_mode(inference):
        assert found(model, images, conv=[1]) == {"bn": [1], "frozen": [1]}
        with pytest.raises(RuntimeError, match="channels"):
            found(model, images[:, :2], conv=[1])
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, IMAGES)
    assert hook_count(model) == 0


def test_a_tuple_holds_the_arguments_of_a_call() -> None:
    model = Net(lambda net, x, scale: net.bn(input=net.conv(x)) * scale, conv=conv(), bn=nn.BatchNorm2d(4))
    mask_filters(model, {"conv": [1]}, example_input=(IMAGES, 2.0))
    assert model.bn.weight.tolist() == [1, 0, 1, 1]


SLOW = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "regnet_y_400mf"]
NETWORKS = ["shufflenet_v2_x0_5", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
PHOTOS = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def noise_but_for(filters: list[int], module: nn.Module, args: Any, output: Tensor) -> Tensor:
    noise = 5 * torch.randn_like(output)
    noise[:, filters] = output[:, filters]
    return noise


def constant_and_zero(model: nn.Module, filters: dict[str, list[int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Test whether the input of each norm channel is constant, and whether its output is exactly 0.

    All other filters of a convolution give noise, so that constant inputs depend on these filters alone. Grouped
    convolutions, whose inputs may all be zeros, are unchanged.
    """
    results = {}

    def look(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs, output = args[0].transpose(0, 1).flatten(1), output.transpose(0, 1).flatten(1)
        results[name] = ((inputs == inputs[:, :1]).all(1), (output == 0).all(1))

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(partial(look, name))
        elif name in filters and module.groups == 1:
            module.register_forward_hook(partial(noise_but_for, filters[name]))
    with torch.no_grad():
        model(PHOTOS)
    return results


@pytest.mark.parametrize("name", NETWORKS)
def test_a_norm_channel_is_0_if_and_only_if_it_depends_only_on_masked_filters(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model, draw = lived_in(torchvision.models.get_model(name, num_classes=4, **options)).eval(), random.Random(0)
    sizes = {layer: conv.out_channels for layer, conv in model.named_modules() if isinstance(conv, nn.Conv2d)}
    filters = {layer: sorted(draw.sample(range(size), size // 3)) for layer, size in sizes.items()}
    mask_filters(model, filters, example_input=PHOTOS[:2])
    behind = 0
    for training in (False, True):
        found = constant_and_zero(copy.deepcopy(model).train(training), filters)
        for layer, (constant, zero) in found.items():
            assert torch.equal(constant, zero), layer
            behind += int(zero.sum())
    assert behind > 0
