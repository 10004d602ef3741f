"""The smaller model gives what the masked one gives, and only what leaves no trace is removed."""

import copy
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from trainers import QUIET, SmallNet, hook_count, loader, quiet_trainer

from lightning_anomaly.pruning.compact import compact
from lightning_anomaly.pruning.mask import mask_filters
from recipes.common.networks import NETWORKS

pytestmark = QUIET

pytest.importorskip("torch_pruning")


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lived_in(model: nn.Module) -> nn.Module:
    """Parameters and statistics as after a training: none is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data = 0.5 * torch.randn(tensor.shape, generator=generator)
            if module.running_var is not None:
                module.running_var.data = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return model


def zeroed(module: Any, filters: Iterable[int]) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[list(filters)] = 0


def filters_of(model: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}


def assert_same_outputs(model: nn.Module, smaller: nn.Module, *shape: int) -> None:
    """On images that `compact` has not seen, in evaluation and in training."""
    images = inputs(*shape, seed=1)
    for training in (False, True):
        pair = [copy.deepcopy(net).train(training) for net in (model, smaller)]
        for net in pair:
            for module in net.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        with torch.no_grad():
            expected, found = (net(images) for net in pair)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert expected.abs().max() > 0


def assert_untouched(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert hook_count(model) == 0


def stays(model: nn.Module, *shape: int, expected: Mapping[str, int]) -> nn.Module:
    """The smaller model, which must keep `{layer: number}` of its masked filters and say so."""
    with pytest.warns(UserWarning, match=re.escape(f"make something of zeros: {dict(expected)}.")):
        smaller = compact(model, inputs(*shape))
    assert_same_outputs(model, smaller, *shape)
    return smaller


def every_third(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(range(0, count - 1, 3)) for name, count in filters_of(model).items()}


@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg11", "vgg11_bn"))]
)
def test_chains_lose_all_masked_filters(name):
    torch.manual_seed(0)
    if name in NETWORKS:
        model = NETWORKS[name](3, 10, 0.5)
    else:
        model = torchvision.models.get_model(name, num_classes=10, init_weights=False)
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))  # quicker
    lived_in(model)
    filters = every_third(model)
    mask_filters(model, filters, example_input=inputs(2, 3, 64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller = compact(model, inputs(2, 3, 64, 64))
    expected = {layer: count - len(filters[layer]) for layer, count in filters_of(model).items()}
    assert filters_of(smaller) == expected
    assert_untouched(model, before)
    assert_same_outputs(model, smaller, 4, 3, 64, 64)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return lived_in(torchvision.models.resnet18(num_classes=10))


def test_resnet18_loses_what_no_shortcut_shares():
    model = resnet()
    filters = every_third(model)
    mask_filters(model, filters, example_input=inputs(2, 3, 64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller = compact(model, inputs(2, 3, 64, 64))  # every third everywhere: no filter has to stay
    assert all(smaller.get_submodule(name).out_channels < count for name, count in filters_of(model).items())
    assert_untouched(model, before)
    assert_same_outputs(model, smaller, 4, 3, 64, 64)


def test_resnet18_keeps_a_channel_that_any_member_of_a_shortcut_needs():
    model = resnet()
    filters = {"conv1": [1, 2], "layer1.0.conv2": [2, 3], "layer1.1.conv2": [2], "layer1.0.conv1": [0, 5]}
    mask_filters(model, filters, example_input=inputs(2, 3, 64, 64))
    smaller = stays(model, 2, 3, 64, 64, expected={"conv1": 1, "layer1.0.conv2": 1})
    changed = {n: (c, filters_of(smaller)[n]) for n, c in filters_of(model).items() if filters_of(smaller)[n] != c}
    assert changed == {
        "conv1": (64, 63),
        "layer1.0.conv1": (64, 62),
        "layer1.0.conv2": (64, 63),
        "layer1.1.conv2": (64, 63),
    }


class Shortcut(nn.Module):
    """Two convolutions whose outputs are added, or joined by a function."""

    def __init__(self, join: Any = None) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.LazyConv2d(2, 3)
        self.join = join or torch.add
        self(inputs(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(self.one(x).relu(), self.two(x).relu()))


class Shuffled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2))


def around(*between: nn.Module) -> nn.Module:
    """Layers between two convolutions."""
    return lived_in(nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 2, 1)))


def only_on_the_example() -> nn.Module:
    model = Shortcut()
    with torch.no_grad():
        model.two.bias[2] = -1e4
    return model


CHAIN = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)]
# A model, its zero filters, how many of them stay, and the filters of the smaller model.
STAYS: dict[str, tuple[Any, dict[str, list[int]], dict[str, int], dict[str, int]]] = {
    "sigmoid": (lambda: around(nn.Sigmoid()), {"0": [1, 2]}, {"0": 2}, {"0": 6, "2": 2}),
    "norm not masked": (lambda: around(nn.BatchNorm2d(6), nn.ReLU()), {"0": [1]}, {"0": 1}, {"0": 6, "3": 2}),
    "GroupNorm": (lambda: around(nn.GroupNorm(3, 6)), {"0": [1, 4]}, {"0": 2}, {"0": 6, "2": 2}),
    "LayerNorm": (lambda: around(nn.LayerNorm([6, 6, 6])), {"0": [1, 4]}, {"0": 2}, {"0": 6, "2": 2}),
    "softmax": (lambda: around(nn.Softmax(1)), {"0": [1]}, {"0": 1}, {"0": 6, "2": 2}),
    "weight_norm": (
        lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 2, 3)),
        *({"0": [1]}, {"0": 1}, {"0": 6, "2": 2}),
    ),
    "shuffle": (lambda: Shuffled(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)), {"0": [1]}, {"0": 1}, {"0": 6, "1": 2}),
    "groups": (
        lambda: around(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2)),
        *({"0": [1], "2": [0, 4]}, {"0": 1, "2": 2}, {"0": 6, "2": 6, "3": 2}),
    ),
    "depthwise": (
        lambda: around(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)),
        *({"0": [1, 2], "2": [2, 3]}, {"0": 1, "2": 1}, {"0": 5, "2": 5, "3": 2}),
    ),
    "shortcut": (
        only_on_the_example,
        *({"one": [2]}, {"one": 1}, {"one": 6, "two": 6, "last": 2}),
    ),
    "output": (lambda: nn.Sequential(*CHAIN), {"0": [3], "2": [1]}, {"2": 1}, {"0": 5, "2": 4}),
    "pooled output": (
        lambda: nn.Sequential(*CHAIN, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *({"0": [3], "2": [1]}, {"2": 1}, {"0": 5, "2": 4}),
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(case):
    make, filters, staying, left = STAYS[case]
    model = copy.deepcopy(make())
    for layer, own in filters.items():
        if case == "weight_norm":
            mask_filters(model, filters)
        else:
            zeroed(model.get_submodule(layer), own)
    assert filters_of(stays(model, 2, 3, 8, 8, expected=staying)) == left


def test_an_instance_norm_with_means_of_its_own_stays():
    model = around(nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    mask_filters(model, {"0": [1]}, example_input=inputs(2, 3, 8, 8))
    stays(model, 2, 3, 8, 8, expected={"0": 1})


def test_nothing_is_removed_that_is_not_masked():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model[0].bias[1] = -1e4  # silent on the example only
    smaller = compact(model, inputs(2, 1, 8, 8))
    assert smaller is not model
    assert_untouched(smaller, model.state_dict())


def test_of_many_layers_the_warning_names_a_few():
    model = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Conv2d(3, 3, 1), nn.Sigmoid())])
    for conv in model[::2]:
        zeroed(conv, [1])
    with pytest.warns(UserWarning, match=r"20 of 20 .*{'0': 1, '2': 1, '4': 1} and more in 17 others\.$") as caught:
        compact(model, inputs(1, 3, 4, 4))
    assert [warning.filename for warning in caught] == [__file__]


def test_a_map_that_the_model_uses_and_returns_stays():
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            maps = self[0](x).relu()
            return self[2](self[1](maps)), maps

    model = Both(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 3))
    mask_filters(model, {"0": [1], "1": [0, 4]})
    with pytest.warns(UserWarning, match=r"make something of zeros: {'0': 1}\."):
        smaller = compact(model, inputs(2, 3, 8, 8))
    assert filters_of(smaller) == {"0": 6, "1": 4, "2": 2}
    for one, other in zip(smaller(inputs(2, 3, 8, 8, seed=1)), model(inputs(2, 3, 8, 8, seed=1)), strict=True):
        torch.testing.assert_close(one, other)


def test_what_torch_pruning_cannot_follow_in_one_place_stays_there():
    class Attention(nn.Module):
        """Of positions, by what all channels together give there."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), Attention()),
        *(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    )
    mask_filters(model, {"0": [1], "2": [0, 4], "5": [3]}, example_input=inputs(2, 3, 10, 10))
    with pytest.warns(UserWarning, match=r"zeros: {'2': 2} \(on some Torch-Pruning failed: IndexError"):
        smaller = compact(model, inputs(2, 3, 10, 10))
    assert_same_outputs(model, smaller, 2, 3, 10, 10)
    assert filters_of(smaller) == {"0": 5, "2": 6, "4.conv": 1, "5": 5, "7": 2}


def two_norms(one: nn.Module, other: nn.Module, activation: nn.Module) -> nn.Module:
    return lived_in(
        nn.Sequential(
            *(nn.Conv2d(3, 6, 3), one, activation, nn.Conv2d(6, 6, 3)),
            *(other, nn.ReLU(), nn.Conv2d(6, 2, 1)),
        )
    )


GOES: dict[str, tuple[Any, dict[str, list[int]], dict[str, int]]] = {
    "concatenation": (
        lambda: Shortcut(lambda one, two: torch.cat([one, two], 1).clone()),
        *({"one": [1, 2], "two": [0, 2, 5]}, {"one": 4, "two": 3, "last": 2}),
    ),
    "depthwise": (
        lambda: around(
            *(nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        ),
        *({"0": [1, 2], "3": [1, 2]}, {"0": 4, "3": 4, "6": 2}),
    ),
    "norms without weight": (
        lambda: two_norms(nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, track_running_stats=False), nn.PReLU(6)),
        *({"0": [1, 2], "3": [0]}, {"0": 4, "3": 5, "6": 2}),
    ),
    "instance norms": (
        lambda: two_norms(nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6), nn.LeakyReLU()),
        *({"0": [1, 2], "3": [0]}, {"0": 4, "3": 5, "6": 2}),
    ),
    "transposed": (
        lambda: nn.Sequential(
            *(nn.ConvTranspose2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Conv2d(4, 2, 1))
        ),
        *({"0": [1, 2], "2": [0]}, {"0": 4, "2": 3, "3": 2}),
    ),
}


@pytest.mark.parametrize("case", GOES)
def test_what_goes(case):
    make, filters, left = GOES[case]
    model = make()
    mask_filters(model, filters, example_input=inputs(2, 3, 8, 8))
    smaller = compact(model, inputs(2, 3, 8, 8))
    assert filters_of(smaller) == left
    assert_same_outputs(model, smaller, 2, 3, 8, 8)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    model = nn.Sequential(conv(3, 6, 3), nn.ReLU(), conv(6, 6, 3), nn.Flatten(), nn.LazyLinear(2))
    shape = (2, 3, *[8] * axes)
    model(inputs(*shape))
    mask_filters(model, {"0": [1, 2], "2": [0]})
    smaller = compact(model, inputs(*shape))
    assert filters_of(smaller) == {"0": 4, "2": 5}
    assert smaller[4].in_features == 5 * 4**axes
    assert_same_outputs(model, smaller, *shape)


class TestTheModel:
    def test_flags_are_those_of_the_given_one(self):
        model = lived_in(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)))
        mask_filters(model, {"0": [1]}, example_input=inputs(2, 3, 8, 8))
        model[0].requires_grad_(False)
        model[3].bias.requires_grad_(False)
        model[1].eval()
        state = torch.random.get_rng_state()
        with torch.no_grad():
            smaller = compact(model, inputs(2, 3, 8, 8))
        assert torch.equal(torch.random.get_rng_state(), state)
        for one, other in zip(model.modules(), smaller.modules(), strict=True):
            assert one.training == other.training
        learns = [{name: p.requires_grad for name, p in net.named_parameters()} for net in (model, smaller)]
        assert learns[0] == learns[1]
        assert learns[0]["0.weight"] is False
        assert hook_count(smaller) == 0
        assert all(parameter.is_leaf and parameter.grad is None for parameter in smaller.parameters())

    def test_layers_of_a_training_alone_are_named(self):
        class Supervised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head, self.deep = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Conv2d(6, 2, 1)

            def forward(self, x: Tensor) -> Any:
                maps = self.conv(x).relu()
                return (self.head(maps), self.deep(maps)) if self.training else self.head(maps)

        model = Supervised()
        compact(model, inputs(2, 3, 8, 8))  # nothing is removed, so nothing is to be said
        mask_filters(model, {"conv": [1]})
        with pytest.warns(
            UserWarning, match="^Layers 'deep' keep their size, as `example_input` does not reach them in"
        ):
            smaller = compact(model, inputs(2, 3, 8, 8))
        assert filters_of(smaller) == {"conv": 5, "head": 2, "deep": 2}

    def test_random_numbers_are_the_same_in_both_and_taken_from_nobody(self):
        class Sampled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.code, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(2, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                mean, width = self.code(self.conv(x).relu()).chunk(2, 1)
                return self.head(mean + torch.randn_like(mean) * width)

        model = Sampled()
        mask_filters(model, {"conv": [1, 2]})
        state = torch.random.get_rng_state()
        assert compact(model, inputs(2, 3, 8, 8)).conv.out_channels == 4
        assert torch.equal(torch.random.get_rng_state(), state)

    @pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
    def test_tensors_that_a_pass_has_left_in_it(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(6, 2, 3)))
        mask_filters(model, {"0": [1]})
        expected = model(inputs(2, 3, 8, 8))  # computes the weight, with a gradient
        with pytest.warns(UserWarning, match=r"make something of zeros: {'0': 1}\."):
            smaller = compact(model, inputs(2, 3, 8, 8))
        torch.testing.assert_close(smaller(inputs(2, 3, 8, 8)), expected)

    def test_several_arguments_and_outputs(self):
        class Several(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head, self.other = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3), nn.Conv2d(6, 1, 1)

            def forward(self, x: Tensor, y: Tensor, scale: float) -> dict[str, Any]:
                maps = self.conv(input=x + y) * scale
                return {"head": self.head(maps), "others": [self.other(input=maps), 3]}

        model = Several()
        mask_filters(model, {"conv": [1, 2]})
        given = (inputs(2, 3, 8, 8), inputs(2, 3, 8, 8, seed=1), 2.0)
        smaller = compact(model, given)
        assert smaller.conv.out_channels == 4
        found, expected = smaller(*given), model(*given)
        assert torch.allclose(found["head"], expected["head"], atol=1e-6)
        assert torch.allclose(found["others"][0], expected["others"][0], atol=1e-6)

    def test_half_precision_rounds_more(self):
        dtype = torch.bfloat16

        class FloatLogits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 100, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.conv(x).relu()).float()

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = FloatLogits().to(dtype)
        images = inputs(32, 3, 8, 8).to(dtype)
        mask_filters(model, {"conv": range(0, 64, 3)})
        smaller = compact(model, images)
        assert smaller.conv.out_channels == 42
        with torch.no_grad():
            found, expected = smaller(images), model(images)
        assert (found - expected).abs().max() / expected.abs().max() < 2 * torch.finfo(dtype).eps

    def test_a_smaller_lightning_module_is_saved_and_loaded_as_the_docs_say(self, tmp_path, monkeypatch):
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
            assert_same_outputs(module, names["again"], 2, 1, 8, 8)
            trainer = quiet_trainer(tmp_path, max_epochs=1)
            trainer.fit(names["again"].train(), loader(), loader())
        assert len(blocks) == 2


class TestErrors:
    def test_without_the_extra_a_sentence_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        with pytest.raises(
            ImportError, match=r"^`compact` needs Torch-Pruning, .*: `pip install torch-pruning`, or .*\.$"
        ):
            compact(nn.Conv2d(1, 2, 3), inputs(1, 1, 8, 8))

    def test_what_is_no_model(self):
        with pytest.raises(ValueError, match=r"`model` should be a torch\.nn\.Module\. Found 'last\.ckpt'"):
            compact("last.ckpt", inputs(1, 1, 8, 8))

    def test_a_model_that_knows_its_number_of_channels(self):
        class Fixed(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return self[1](self[0](x).view(len(x), 6 * 36))

        model = Fixed(nn.Conv2d(3, 6, 3), nn.Linear(216, 2))
        mask_filters(model, {"0": [1]})
        with pytest.raises(ValueError, match=r"`model`.* is invalid for input of size 360"):
            compact(model, inputs(2, 3, 8, 8))

    @pytest.mark.filterwarnings("ignore:Masked filters feed normalisation layers")
    def test_a_model_that_torch_pruning_cannot_follow(self):
        model = torchvision.models.shufflenet_v2_x0_5(num_classes=2)
        mask_filters(model, {"stage2.0.branch2.0": [1]}, example_input=inputs(1, 3, 32, 32))
        message = (
            r"that Torch-Pruning can follow\. Found a ShuffleNetV2, on which it failed: Z.*; the masked model itself g"
        )
        with pytest.raises(ValueError, match=message):
            compact(model, inputs(1, 3, 32, 32))

    def test_a_model_that_mixes_its_channels(self):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3, alpha=1.0), nn.Conv2d(6, 2, 1))
        mask_filters(model, {"0": [1]})
        with pytest.raises(ValueError, match=r"`model`(?s:.*) not close"):
            compact(model, inputs(2, 3, 8, 8))
