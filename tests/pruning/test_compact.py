"""The smaller model has the outputs of the masked one, and only filters without any effect are removed."""

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from functional import Net, lived_in, same, state_of
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves
from trainers import QUIET, SmallNet, hook_count, loader, quiet_trainer

from lightning_anomaly.pruning.compact import compact
from lightning_anomaly.pruning.mask import mask_filters
from recipes.common.networks import NETWORKS

pytestmark = QUIET

pytest.importorskip("torch_pruning")


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)), generator=torch.Generator().manual_seed(seed))


def filters_of(model: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}


def assert_same_outputs(model: nn.Module, smaller: nn.Module, *examples: Any) -> None:
    """Compare outputs for images that `compact` has not seen, in evaluation and in training mode."""
    arguments = tuple(inputs(*x.shape, seed=2) if isinstance(x, Tensor) else x for x in examples)
    for training in (False, True):
        outputs = []
        for net in (model, smaller):
            torch.manual_seed(0)
            with torch.no_grad():
                leaves = tree_leaves(copy.deepcopy(net).train(training)(*arguments))
            outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        for expected, output in zip(*outputs, strict=True):
            assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert expected.abs().max() > 0


def compacted(model: nn.Module, *given: Any, staying: dict[str, int] | None = None) -> nn.Module:
    """Compact a model; `{layer: number}` of its zero filters must stay with a warning, and the model be unchanged."""
    before = state_of(model)
    hooks, state = hook_count(model), torch.random.get_rng_state()
    counts = ", ".join(f"{count} of '{name}'" for name, count in (staying or {}).items())
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", ".* masked filters stay")
        smaller = compact(model, given if len(given) > 1 else given[0])
    assert [warning.filename for warning in caught] == [__file__] * bool(staying)
    assert all(f"zeros: {counts}." in str(warning.message) for warning in caught)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(model.state_dict(), before)
    assert hook_count(model) == hook_count(smaller) == hooks
    return smaller


@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("resnet18", marks=pytest.mark.slow)])
def test_networks_lose_all_masked_filters(name):
    torch.manual_seed(0)
    model = lived_in(NETWORKS[name](3, 10) if name in NETWORKS else torchvision.models.resnet18(num_classes=10))
    # Every third filter of all layers, so that no shortcut needs one.
    filters = {layer: list(range(0, count - 1, 3)) for layer, count in filters_of(model).items()}
    images = inputs(4, 3, 64, 64)
    mask_filters(model, filters, example_input=images)
    smaller = compacted(model, images)
    left = {layer: count - len(filters[layer]) for layer, count in filters_of(model).items()}
    assert filters_of(smaller) == left
    assert_same_outputs(model, smaller, images)


def around(*between: nn.Module) -> nn.Module:
    """Put layers between two convolutions."""
    return lived_in(nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 2, 1)))


def faint(model: nn.Sequential) -> nn.Module:
    """Scale the outputs by 1e-6, to which the tolerance is relative."""
    for parameter in model[-1].parameters():
        parameter.data *= 1e-6
    return model


def joined(join: Any, channels: int = 6) -> nn.Module:
    """Join the rectified outputs of two convolutions."""
    layers = {"one": nn.Conv2d(3, 6, 3), "two": nn.Conv2d(3, 6, 3), "last": nn.Conv2d(channels, 2, 3)}
    return Net(lambda net, x: net.last(join(net.one(x).relu(), net.two(x).relu())), **layers)


def only_on_the_example() -> nn.Module:
    """Make a filter that is silent on the example, but not zero."""
    model = joined(torch.add)
    model.two.bias.data[2] = -1e4
    return model


def attention(net: nn.Module, x: Tensor) -> Tensor:
    """Attention over positions by statistics over all channels, which Torch-Pruning cannot follow."""
    return x * net.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def both(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    maps = net.a(x).relu()
    return net.c(net.b(maps)), maps


def several(net: nn.Module, x: Tensor, y: Tensor, scale: float) -> dict[str, Any]:
    """Uses keyword arguments and random numbers."""
    maps = net.conv(input=x + torch.randn_like(y)) * scale
    return {"head": net.head(maps), "others": [net.other(input=maps), 3]}


def residual(net: nn.Module, x: Tensor) -> Tensor:
    x = net.stem(x).relu()
    x = (x + net.b(net.a(x).relu())).relu()
    return net.last(x + net.c(x))


def twice(net: nn.Module, x: Tensor) -> Tensor:
    return net.b(net.a(x).relu()) + net.b(torch.cat([x, x], 1))


def chain(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), *after)


# A model, its masked filters, the number of them that stay, and the filters of the smaller model.
CASES: dict[str, tuple[Any, dict[str, list[int]], dict[str, int], list[int]]] = {
    "sigmoid": (lambda: around(nn.Sigmoid()), {"0": [1, 2]}, {"0": 2}, [6, 2]),
    "GroupNorm": (lambda: around(nn.GroupNorm(3, 6)), {"0": [1, 4]}, {"0": 2}, [6, 2]),
    "weight_norm": (lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU()), {"0": [1]}, {"0": 1}, [6]),
    "called twice": (
        lambda: Net(twice, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 2, 1)),
        *({"a": [1]}, {"a": 1}, [6, 2]),
    ),
    "groups": (
        lambda: around(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2)),
        *({"0": [1], "2": [0, 4]}, {"0": 1, "2": 2}, [6, 6, 2]),
    ),
    "depthwise": (
        lambda: around(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)),
        *({"0": [1, 2], "2": [2, 3]}, {"0": 1, "2": 1}, [5, 5, 2]),
    ),
    "silent on the example": (only_on_the_example, {"one": [2]}, {"one": 1}, [6, 6, 2]),
    "shortcuts": (  # a channel stays if any term of a sum needs it
        lambda: Net(
            residual, stem=nn.Conv2d(3, 6, 3), **{name: nn.Conv2d(6, 6, 1) for name in ("a", "b", "c", "last")}
        ),
        *({"stem": [1, 2], "a": [0, 5], "b": [2, 3], "c": [2]}, {"stem": 1, "b": 1}, [5, 4, 5, 5, 6]),
    ),
    "output": (chain, {"0": [3], "2": [1]}, {"2": 1}, [5, 4]),
    "used and returned": (
        lambda: Net(both, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 6, 3), c=nn.Conv2d(6, 2, 3)),
        *({"a": [1], "b": [0, 4]}, {"a": 1}, [6, 4, 2]),
    ),
    "attention": (
        lambda: chain(nn.ReLU(), Net(attention, conv=nn.Conv2d(2, 1, 3, padding=1)), nn.Conv2d(4, 6, 1), nn.ReLU()),
        *({"0": [1], "2": [0, 3]}, {"2": 2}, [5, 4, 1, 6]),
    ),
    "concatenation": (
        lambda: joined(lambda one, two: torch.cat([one, two], 1).clone(), 12),
        *({"one": [1, 2], "two": [0, 2, 5]}, {}, [4, 3, 2]),
    ),
    "depthwise without bias": (
        lambda: around(
            *(nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        ),
        *({"0": [1, 2], "3": [1, 2]}, {}, [4, 4, 2]),
    ),
    "norms without weight": (
        lambda: around(
            *(nn.BatchNorm2d(6, affine=False), nn.PReLU(6), nn.Conv2d(6, 6, 3)),
            *(nn.InstanceNorm2d(6, affine=True), nn.LeakyReLU()),
        ),
        *({"0": [1, 2], "3": [0]}, {}, [4, 5, 2]),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Conv2d(4, 2, 1)),
        *({"0": [1, 2], "2": [0]}, {}, [4, 3, 2]),
    ),
    "several arguments and outputs": (
        lambda: Net(several, conv=nn.Conv2d(3, 6, 3), head=nn.Conv2d(6, 2, 3), other=nn.Conv2d(6, 1, 1)),
        *({"conv": [1, 2]}, {}, [4, 2, 1]),
    ),
}


@pytest.mark.filterwarnings("ignore:Masked filters feed normalization layers")
@pytest.mark.parametrize("case", CASES)
def test_masked_filters_are_removed_unless_their_zeros_have_an_effect(case):
    make, filters, staying, left = CASES[case]
    torch.manual_seed(0)
    model, arguments = make(), (inputs(), inputs(seed=1), 2.0) if case.startswith("several") else (inputs(),)
    mask_filters(model, filters, example_input=arguments)
    smaller = compacted(model, *arguments, staying=staying)
    assert list(filters_of(smaller).values()) == left
    assert_same_outputs(model, smaller, *arguments)


def test_flags_of_the_model_are_kept():
    model = lived_in(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)))
    mask_filters(model, {"0": [1]}, example_input=inputs())
    model[0].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    model[1].eval()
    with torch.no_grad():
        smaller = compacted(model, inputs())
    assert [module.training for module in smaller.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in smaller.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not smaller[0].weight.requires_grad
    assert all(parameter.is_leaf and parameter.grad is None for parameter in smaller.parameters())


def test_outputs_agree_within_the_rounding_of_half_precision():
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 64, 3, padding=1), "head": nn.Conv2d(64, 100, 3)}
    model = Net(lambda net, x: net.head(net.conv(x).relu()).float(), **layers).to(torch.bfloat16)
    images = inputs(32, 3, 8, 8).to(torch.bfloat16)
    mask_filters(model, {"conv": range(0, 64, 3)})
    smaller = compact(model, images)
    assert smaller.conv.out_channels == 42
    found, expected = smaller(images), model(images)
    assert (found - expected).abs().max() / expected.abs().max() < 2 * torch.finfo(torch.bfloat16).eps


def test_a_smaller_lightning_module_is_saved_and_loaded_as_the_docs_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "again = " in code]
    module, images = lived_in(SmallNet()), inputs(2, 1, 8, 8)
    mask = mask_filters(module, {"conv1": [1], "conv2": [0, 5]}, example_input=images)
    smaller = compact(module, images)
    for code in blocks:
        names = {"Classifier": SmallNet, "images": images, "mask": mask, "smaller": smaller}
        exec(code, names)
        assert filters_of(names["again"]) == {"conv1": 3, "conv2": 4}
        assert torch.equal(names["again"].eval()(images), smaller.eval()(images))
        quiet_trainer(tmp_path, max_epochs=1).fit(names["again"].train(), loader(), loader())
    assert len(blocks) == 2


FAILS = {
    "not a model": (lambda: "last.ckpt", {}, r"last\.ckpt"),
    "a number of channels": (
        lambda: Net(lambda net, x: net.b(net.a(x).view(len(x), 216)), a=nn.Conv2d(3, 6, 3), b=nn.Linear(216, 2)),
        *({"a": [1]}, "size 360"),
    ),
    "mixed channels": (lambda: faint(around(nn.LocalResponseNorm(3, alpha=1.0))), {"0": [1]}, "not close"),
    "not followed": (
        lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=2),
        *({"stage2.0.branch2.0": [1]}, "Found a ShuffleNetV2"),
    ),
}


@pytest.mark.parametrize("case", FAILS)
def test_a_model_that_cannot_be_made_smaller_is_an_error(case):
    make, filters, found = FAILS[case]
    model, images = make(), inputs(1, 3, 32, 32) if case == "not followed" else inputs()
    if filters:
        mask_filters(model, filters, example_input=images)
    with pytest.raises(ValueError, match=rf"(?s)`model`.*{found}"):
        compact(model, images)
