"""What is masked gives exactly 0, stays so whatever the optimizer does, and can be taken back."""

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_anomaly import AnomalyReport, analyze
from lightning_anomaly.pruning.mask import FilterMask, mask_filters
from lightning_anomaly.pruning.norms import FlowObserver, NormFlow

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3
FILTERS = {"conv1": [1, 4], "conv2": [0], "up": [2]}


class Net(nn.Module):
    """Called in another order than defined; a shortcut; GELU, which does not hold a filter at zero by itself."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, **options: bool) -> None:
        super().__init__()
        self.norm2 = norm(6, **options)
        self.head = nn.Linear(4, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.norm1 = norm(6, **options)
        self.conv1 = nn.Conv2d(3, 6, 3)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The masked layers' outputs, before and after their norm."""
        conv1 = self.conv1(x)
        norm1 = self.norm1(conv1)
        hidden = F.gelu(norm1)
        conv2 = self.conv2(hidden)
        norm2 = self.norm2(conv2)
        up = self.up(F.gelu(norm2 + hidden))
        return {"conv1": conv1, "norm1": norm1, "conv2": conv2, "norm2": norm2, "up": up}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.maps(x)["up"]).mean((2, 3)))


def pretrained(seed: int = 0, **options) -> Net:
    """A network whose running statistics are not those of a fresh one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(**options)
    for _ in range(3):
        model(3 * IMAGES + 1)
    return model


def train(model, optimizer, mask, steps=5, clip=None, accumulate=1, gradients=True, rows=True) -> None:
    model.train()
    for step in range(steps * accumulate):
        F.cross_entropy(model(IMAGES), TARGETS).backward()
        if (step + 1) % accumulate == 0:
            if gradients:
                mask.keep_gradients()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        if rows:
            mask.keep([optimizer])


def leak(model: Net) -> int:
    """How many values of the masked filters' maps are not 0, in training and in evaluation mode."""
    count = 0
    probe = copy.deepcopy(model)
    for training in (True, False):
        maps = probe.train(training).maps(IMAGES)
        for layer, filters in FILTERS.items():
            for name in (layer, layer.replace("conv", "norm")):
                count += int(maps[name][:, filters].count_nonzero())
    return count


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov, weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam, amsgrad, weight decay": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize(
    "how", [{}, {"clip": 0.1}, {"accumulate": 3}, {"clip": 0.1, "accumulate": 2, "gradients": False}], ids=str
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_outputs_stay_exactly_0_through_training(name: str, how: dict) -> None:
    model = pretrained()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, FilterMask(model))  # so that the optimizer has a past
    assert leak(model) > 0
    mask = mask_filters(model, FILTERS, example_input=IMAGES, optimizers=[optimizer])
    assert leak(model) == 0
    unmasked = model.conv1.weight[0].clone()
    train(model, optimizer, mask, **how)
    assert leak(model) == 0
    assert mask.verify()
    assert not torch.equal(model.conv1.weight[0], unmasked)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["momentum", "Adam", "AdamW", "RMSprop"])
def test_gradients_of_zero_alone_would_not_be_enough(name: str) -> None:
    model = pretrained()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, FilterMask(model))
    mask = mask_filters(model, FILTERS, example_input=IMAGES)  # the optimizer keeps its past
    train(model, optimizer, mask, steps=1, rows=False)
    assert leak(model) > 0
    assert not mask.verify()
    mask.keep([optimizer])
    assert leak(model) == 0


def test_without_the_mask_a_filter_comes_back() -> None:
    model = pretrained()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    train(model, OPTIMIZERS["SGD"](model.parameters()), mask, gradients=False, rows=False)
    assert leak(model) > 0


def test_masked_filters_do_not_use_up_the_clipping_norm() -> None:
    model = pretrained()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    F.cross_entropy(model(IMAGES), TARGETS).backward()
    norm_before = nn.utils.clip_grad_norm_(model.parameters(), torch.inf)  # only measures
    mask.keep_gradients()
    assert nn.utils.clip_grad_norm_(model.parameters(), torch.inf) < norm_before
    assert model.conv1.weight.grad[FILTERS["conv1"]].count_nonzero() == 0
    assert model.norm1.weight.grad[FILTERS["conv1"]].count_nonzero() == 0


def test_an_optimizer_loses_the_masked_rows_and_keeps_everything_else() -> None:
    model = pretrained()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    train(model, optimizer, FilterMask(model))
    before = copy.deepcopy(optimizer.state[model.conv1.weight])
    optimizer.state[model.conv1.weight]["row_var"] = torch.ones(6, 3, 3, 1)
    optimizer.state[model.conv1.weight]["name"] = "not a tensor"
    mask_filters(model, {"conv1": [1, 4]}, example_input=IMAGES, optimizers=[optimizer])
    after = optimizer.state[model.conv1.weight]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert after[key][[1, 4]].count_nonzero() == 0
        assert torch.equal(after[key][[0, 2, 3, 5]], before[key][[0, 2, 3, 5]])
    assert after["step"] == before["step"] == 5
    assert after["row_var"].count_nonzero() == after["row_var"].numel()
    assert optimizer.state[model.norm1.weight]["exp_avg"][[1, 4]].count_nonzero() == 0
    assert model.head.weight in optimizer.state


def test_codes_of_an_8_bit_optimizer_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(model.parameters())
    codes = torch.full((4, 3, 3, 3), 127, dtype=torch.uint8)
    optimizer.state[model[0].weight] = {"state1": codes}
    mask_filters(model, {"0": [1]}, optimizers=[optimizer])
    assert (codes == 127).all()


def test_an_optimizer_without_a_past_gets_no_state() -> None:
    model = pretrained()
    optimizer = torch.optim.Adam(model.parameters())
    mask_filters(model, FILTERS, example_input=IMAGES, optimizers=[optimizer])
    assert len(optimizer.state) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"norm": nn.BatchNorm2d, "affine": False},
        {"norm": nn.BatchNorm2d, "track_running_stats": False},
        {"norm": nn.BatchNorm2d, "affine": False, "track_running_stats": False},
        {"norm": nn.InstanceNorm2d},
        {"norm": nn.InstanceNorm2d, "affine": True},
        {"norm": nn.InstanceNorm2d, "affine": True, "track_running_stats": True},
        {"norm": nn.InstanceNorm2d, "track_running_stats": True},
    ],
    ids=str,
)
def test_outputs_are_0_behind_every_norm_of_single_channels(options: dict) -> None:
    model = pretrained(**options)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    assert leak(model) == 0
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), mask)
    assert leak(model) == 0


def test_masks_a_synchronised_batch_norm() -> None:
    # In evaluation mode: training mode wants a GPU and a process group.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(pretrained()).eval()
    mask_filters(model, FILTERS, example_input=IMAGES)
    maps = model.maps(IMAGES)
    assert maps["norm1"][:, FILTERS["conv1"]].count_nonzero() == 0
    assert maps["norm2"][:, FILTERS["conv2"]].count_nonzero() == 0


@pytest.mark.parametrize(
    ("norm", "name"),
    [(lambda: nn.GroupNorm(2, 6), "GroupNorm"), (lambda: nn.LayerNorm([6, 6, 6]), "LayerNorm")],
    ids=["GroupNorm", "LayerNorm"],
)
def test_a_norm_that_mixes_channels_gives_one_warning_and_is_left_alone(norm, name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm(), nn.Conv2d(6, 6, 3, padding=1), norm())
    before = bits(model[1])
    with pytest.warns(
        UserWarning, match=rf"depend on other channels.*'0' -> '1' \({name}\), '2' -> '3' .*not prom"
    ) as caught:
        mask = mask_filters(model, {"0": [1], "2": [0, 5]}, example_input=IMAGES)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert same(bits(model[1]), before)
    assert model[0](IMAGES)[:, 1].count_nonzero() == 0
    assert model[:2](IMAGES)[:, 1].count_nonzero() > 0  # what the warning says
    mask.add({"0": [2]})  # known by now: neither another pass nor another warning
    assert mask.masked == {"0": [1, 2], "2": [0, 5]}


def test_a_norm_of_another_library_is_warned_about() -> None:
    class FrozenBatchNorm2d(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    model = nn.Sequential(nn.Conv2d(3, 6, 3), FrozenBatchNorm2d())
    with pytest.warns(UserWarning, match=r"'0' -> '1' \(FrozenBatchNorm2d\)"):
        mask_filters(model, {"0": [1]}, example_input=IMAGES)


def test_a_norm_that_is_shared_is_left_alone_with_a_warning() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.a(x)) + self.bn(self.b(x))

    model = Shared()
    with pytest.warns(UserWarning, match=r"'a' -> 'bn' \(BatchNorm2d\)"):
        mask_filters(model, {"a": [1]}, example_input=IMAGES)
    assert model.bn.weight.count_nonzero() == 6


class Block(nn.Module):
    """`function(self, x)` with a first and a second convolution, and a norm of `channels`."""

    def __init__(self, function, channels: int = 6, **norm: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
            self.norm = nn.BatchNorm2d(channels, **norm)
            nn.init.normal_(self.norm.running_mean, std=0.1)
            if self.norm.affine:
                nn.init.normal_(self.norm.weight)
                nn.init.normal_(self.norm.bias)
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def silent(model: nn.Module) -> list[int]:
    """The channels of a model's output that are exactly 0, in training and in evaluation alike."""
    found = []
    for training in (True, False):
        output = copy.deepcopy(model).train(training)(IMAGES)
        zero = output.transpose(0, 1).flatten(1).count_nonzero(1) == 0
        assert not (output.flatten(2).std(2).amax(0)[~zero] < 1e-4).any()  # nor is any other one constant
        found.append(zero.nonzero().flatten().tolist())
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "between",
    [
        F.relu,
        F.leaky_relu,
        F.gelu,
        F.silu,
        torch.tanh,
        lambda x: F.relu_(x),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, padding=1),
        lambda x: F.dropout(x, 0.1, training=True),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    ],
    ids=["relu", "leaky_relu", "gelu", "silu", "tanh", "relu_", "max_pool", "avg_pool", "dropout", "nearest", "gate"],
)
def test_outputs_are_0_behind_a_norm_behind_a_function(between, affine: bool) -> None:
    model = Block(lambda net, x: net.norm(between(net.first(x))), affine=affine)
    before = bits(model)
    mask = mask_filters(model, {"first": [1, 4]}, example_input=IMAGES)
    assert silent(model) == [1, 4]
    assert mask.parameter_count == 2 * (27 + 1 + 2 * affine)
    mask.restore()
    assert same(bits(model), before)


def test_outputs_are_0_behind_the_norm_of_a_concatenation() -> None:
    model = Block(lambda net, x: net.norm(torch.cat([x, net.first(x), F.relu(net.second(x))], 1)), 15)
    before = bits(model)
    mask = mask_filters(model, {"second": [0, 5]}, example_input=IMAGES)
    assert silent(model) == [9, 14]
    mask.add({"first": [2], "second": [1]})
    assert silent(model) == [5, 9, 10, 14]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for _ in range(3):
        model.train()(IMAGES).square().sum().backward()
        mask.keep_gradients()
        assert model.norm.bias.grad[[5, 9, 10, 14]].count_nonzero() == 0
        optimizer.step()
        mask.keep([optimizer])
    assert mask.verify()
    assert silent(model) == [5, 9, 10, 14]
    model.norm.bias.data[5] = 1
    assert not mask.verify()
    mask.restore()
    after = bits(model)
    assert torch.equal(after["norm.weight"][[5, 9, 10, 14]], before["norm.weight"][[5, 9, 10, 14]])
    assert torch.equal(after["norm.running_var"][[5, 9, 10, 14]], before["norm.running_var"][[5, 9, 10, 14]])


def test_a_sum_is_0_where_all_in_it_is_and_else_left_alone_without_a_warning() -> None:
    model = Block(lambda net, x: net.norm(net.first(x) + F.relu(net.second(x))))
    before = bits(model)
    mask = mask_filters(model, {"first": [1, 2], "second": [3]}, example_input=IMAGES)
    assert silent(model) == []
    assert all(torch.equal(model.norm.state_dict()[name], before[f"norm.{name}"]) for name in ("weight", "bias"))
    mask.add({"second": [2]})  # now there is nothing else in channel 2
    assert silent(model) == [2]
    again = FilterMask.from_state_dict(model, json.loads(json.dumps(mask.state_dict())))
    again.add({"second": [1]})
    assert silent(model) == [1, 2]


def test_a_shortcut_around_a_filter_leaves_the_norm_behind_alone_without_a_warning() -> None:
    model = Block(lambda net, x: net.norm(net.first(x)[:, :3] + x), 3)
    mask_filters(model, {"first": [1]}, example_input=IMAGES)
    assert silent(model) == []


class PreActivation(nn.Module):
    """Two blocks of norm, activation and convolution around which their input goes, in two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.norm2, self.conv2, self.norm3 = nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, padding=1), nn.BatchNorm2d(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(F.relu(self.norm1(x)))
        x = F.pad(x, (0, 0, 0, 0, 1, 2)) + self.conv2(F.relu(self.norm2(x)))  # zeros for the new channels
        return self.norm3(x)


def test_outputs_are_0_in_pre_activation_blocks_where_nothing_else_is_added() -> None:
    torch.manual_seed(0)
    model = PreActivation()
    for norm in (model.norm1, model.norm2, model.norm3):
        nn.init.normal_(norm.bias)
    mask_filters(model, {"stem": [0, 3], "conv1": [2, 3], "conv2": [0, 1, 4]}, example_input=IMAGES)
    assert model.norm1.bias.eq(0).nonzero().flatten().tolist() == [0, 3]  # of the stem alone
    assert model.norm2.bias.eq(0).nonzero().flatten().tolist() == [3]  # of both sides
    assert silent(model) == [0, 4]  # 0: padding; 4: channel 3 of the other side


def test_outputs_are_0_behind_all_norms_on_the_way() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        nn.BatchNorm2d(6),
    )
    for layer in (1, 4, 6):
        nn.init.normal_(model[layer].bias)
    mask = mask_filters(model, {"0": [1], "3": [4]}, example_input=IMAGES)
    assert silent(model) == [1, 4]
    assert silent(model[:2]) == [1]
    assert mask.masked == {"0": [1], "3": [4]}
    assert mask.parameter_count == (27 + 1 + 2) + 9 + 2 * (2 + 2)


@pytest.mark.parametrize(
    "between", [torch.sigmoid, lambda x: x + 1, lambda x: x.softmax(1)], ids=["sigmoid", "+1", "softmax"]
)
def test_what_cannot_be_followed_gives_one_warning_that_names_the_norm(between) -> None:
    model = Block(lambda net, x: net.norm(between(net.first(x))) + net.norm.weight.sum() * between(net.second(x)))
    before = bits(model.norm)
    with pytest.warns(
        UserWarning, match=r"behind operations that could not be followed: 'first' -> 'norm' \(BatchN"
    ) as caught:
        mask = mask_filters(model, {"first": [1], "second": [2]}, example_input=IMAGES)
    assert len(caught) == 1
    assert same(bits(model.norm), before)
    mask.add({"first": [2]})  # known by now
    assert model.first(IMAGES)[:, [1, 2]].count_nonzero() == 0


def test_a_mask_of_before_functions_were_followed_is_taken() -> None:
    model = Block(lambda net, x: net.behind(F.relu(net.norm(net.first(x)))))
    model.behind = nn.BatchNorm2d(6)
    nn.init.zeros_(model.norm.bias)
    nn.init.normal_(model.behind.bias)
    mask = FilterMask.from_state_dict(model, {"filters": {"first": [1]}, "norms": {"first": ["norm"]}})
    assert mask.masked == {"first": [1]}
    assert model.norm.weight[1] == 0
    mask.add({"first": [2]}, example_input=IMAGES)  # known, so that there is no pass
    assert model.behind.bias.count_nonzero() == 6
    with FlowObserver(model) as observer:
        model(IMAGES)
    mask.add({"first": [4]}, flow=observer.flow)
    assert silent(model) == [1, 2, 4]


def test_a_masked_layer_that_is_gone_is_no_obstacle_to_masking_others() -> None:
    model = Block(lambda net, x: net.norm(net.first(x) + F.relu(net.second(x))))
    mask = mask_filters(model, {"first": [1]}, example_input=IMAGES)
    del model.first
    model.function = lambda net, x: net.norm(F.relu(net.second(x)))
    mask.add({"second": [2]}, example_input=IMAGES)
    assert mask.masked == {"first": [1], "second": [2]}
    assert silent(model) == [2]


@pytest.mark.parametrize(
    "fed",
    [["norm", [0, 1], [5, 6]], ["norm", [0, 6], [4, 5]], ["norm", [0], [-1]], ["second", [0], [0]], "second"],
    ids=str,
)
def test_a_place_that_is_none_is_refused_and_touches_nothing(fed) -> None:
    model = Block(lambda net, x: net.norm(net.first(x)))
    before = bits(model)
    with pytest.raises(ValueError, match=r"name normalisation layers of the model, of 6 channels .* 'first'\. Found '"):
        mask_filters(model, {"first": [0]}, flow=NormFlow({"first": [fed]}))
    assert same(bits(model), before)


def test_the_other_filters_keep_their_bits() -> None:
    model = pretrained().eval()
    before = model.maps(IMAGES)
    mask_filters(model, {"conv1": [1, 4]}, example_input=IMAGES)
    after = model.maps(IMAGES)
    for name in ("conv1", "norm1"):
        assert torch.equal(after[name][:, [0, 2, 3, 5]], before[name][:, [0, 2, 3, 5]])
        assert after[name][:, [1, 4]].count_nonzero() == 0


@pytest.mark.parametrize("affine", [True, False])
def test_restore_gives_the_same_bits(affine: bool) -> None:
    model = pretrained(affine=affine)
    before = bits(model)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    assert not same(bits(model), before)
    mask.restore()
    assert same(bits(model), before)
    assert mask.masked == {}
    assert mask.parameter_count == 0


def test_restore_after_training_gives_the_masked_filters_back_as_they_were() -> None:
    model = pretrained()
    before = bits(model)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, mask, steps=30)
    assert model.norm1.running_var[1] < 0.1 * before["norm1.running_var"][1]  # those of a map of zeros
    mask.restore()
    after = bits(model)
    for name in ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias", "norm1.running_mean", "norm1.running_var"):
        assert torch.equal(after[name][[1, 4]], before[name][[1, 4]])
    assert torch.equal(after["up.weight"][3:, 0], before["up.weight"][3:, 0])  # filter 2 of 4 in 2 groups of 6 inputs
    assert not torch.equal(after["conv1.weight"][0], before["conv1.weight"][0])
    train(model, optimizer, mask)  # an ended mask holds nothing back
    assert model.conv1.weight[1].count_nonzero() == 27


def test_masks_add_up_and_restore_together() -> None:
    model = pretrained()
    before = bits(model)
    mask = mask_filters(model, {"conv1": [4]}, example_input=IMAGES)
    first = mask.parameter_count
    with FlowObserver(model) as observer, torch.no_grad():
        model.eval()(IMAGES)
    mask.add({"conv1": [1, 4], "conv2": [0], "up": []}, flow=observer.flow)
    mask.add({"up": (2,)}, flow=observer.flow)
    assert mask.masked == FILTERS
    assert leak(model) == 0
    assert first == 3 * 9 + 1 + 2
    assert mask.parameter_count == 2 * (3 * 9 + 1 + 2) + (2 * 9 + 1 + 2) + (3 * 4 + 1)
    assert mask.parameter_fraction == mask.parameter_count / sum(p.numel() for p in model.parameters())
    mask.restore()
    assert same(bits(model), before)


def test_two_layers_with_one_weight_count_once_and_restore() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, bias=False))
    model[1].weight = model[0].weight
    before = bits(model)
    mask = mask_filters(model, {"0": [1], "1": [1, 2]})
    assert mask.parameter_count == 2 * 27 + 1
    assert model[1](IMAGES)[:, [1, 2]].count_nonzero() == 0
    mask.restore()
    assert same(bits(model), before)


def test_follows_a_parameter_that_was_replaced() -> None:
    model = nn.Conv2d(3, 6, 3)
    mask = mask_filters(model, {"": [1]})
    model.load_state_dict(nn.Conv2d(3, 6, 3).state_dict(), assign=True)
    assert not mask.verify()
    mask.keep()
    assert model(IMAGES)[:, 1].count_nonzero() == 0


def test_a_checkpoint_of_a_masked_model_is_an_ordinary_one(tmp_path) -> None:
    model = pretrained()
    keys = list(model.state_dict())
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    train(model, torch.optim.AdamW(model.parameters()), mask)
    assert list(model.state_dict()) == keys
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    plain = Net()
    plain.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True))
    assert torch.equal(plain.eval()(IMAGES), model.eval()(IMAGES))


def test_a_state_is_plain_values_and_masks_another_copy(tmp_path) -> None:
    model, average = pretrained(), pretrained(seed=1)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    state = mask.state_dict()
    assert json.loads(json.dumps(state)) == state
    torch.save(state, tmp_path / "mask.ckpt")
    again = FilterMask.from_state_dict(average, torch.load(tmp_path / "mask.ckpt", weights_only=True))
    assert leak(average) == 0
    assert again.masked == mask.masked
    assert again.state_dict() == state
    assert again.parameter_count == mask.parameter_count
    train(average, torch.optim.Adam(average.parameters()), again)
    assert leak(average) == 0


def test_a_mask_made_from_a_state_cannot_restore_and_says_so() -> None:
    model = pretrained()
    state = mask_filters(model, FILTERS, example_input=IMAGES).state_dict()
    mask = FilterMask.from_state_dict(model, state)
    mask.add({"conv1": [2]})
    with pytest.raises(
        RuntimeError, match=r"made by `FilterMask\.from_state_dict` cannot restore .* values are not part"
    ):
        mask.restore()
    assert leak(model) == 0


@pytest.mark.parametrize("state", [{}, {"filters": {"conv1": [1]}}, {"filters": {"conv1": [1]}, "norms": {}}], ids=str)
def test_a_state_that_is_none_is_refused(state: dict) -> None:
    with pytest.raises(
        ValueError, match=r"`state` should be what `FilterMask\.state_dict\(\)` gave\. Found `state = {"
    ):
        FilterMask.from_state_dict(Net(), state)


def test_keeps_no_tensor_of_inference_mode() -> None:
    model = pretrained()
    with torch.inference_mode():
        mask = mask_filters(model, FILTERS, example_input=IMAGES)
        mask.keep()
    assert not any(part.is_inference() for rows in mask._rows for part in (rows.saved, *rows.index))
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    train(model, torch.optim.Adam(model.parameters()), mask)
    assert leak(model) == 0
    mask.restore()


def test_follows_a_model_to_another_precision() -> None:
    model = pretrained()
    before = copy.deepcopy(model).double()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    model.double()
    mask.keep()
    assert mask.verify()
    mask.restore()
    assert same(bits(model), bits(before))


def test_names_are_those_without_compile() -> None:
    model = pretrained()
    compiled = torch.compile(model, backend="eager")
    mask = mask_filters(compiled, FILTERS, example_input=IMAGES)
    assert leak(model) == 0
    assert mask.state_dict()["norms"] == {"conv1": ["norm1"], "conv2": ["norm2"], "up": []}
    FilterMask.from_state_dict(pretrained(), mask.state_dict())


def test_names_are_those_without_fabric() -> None:
    model = pretrained()
    wrapped = Fabric(accelerator="cpu", devices=1).setup(model)
    report = analyze(wrapped, IMAGES.repeat(8, 1, 1, 1))
    assert set(report.layers) == {"conv1", "conv2", "up"}
    mask_filters(wrapped, FILTERS, example_input=IMAGES)
    assert leak(model) == 0


def test_a_model_without_norms_needs_no_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    mask_filters(model, {"0": [1], "2": [0]})
    assert model(IMAGES)[:, 0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            {"conv9": [0]},
            r"`filters` should name convolutions of the model, \['up', 'conv2', 'conv1'\]\. Found 'conv9'\.",
        ),
        ({"head": [0]}, r"should name convolutions of the model, .* Found 'head', a Linear\."),
        ({"conv1": [6]}, r"`filters` should hold integers from 0 to 5 for layer 'conv1'\. Found 6\."),
        ({"conv1": [-1]}, r"should hold integers from 0 to 5 for layer 'conv1'\. Found -1\."),
        ({"conv1": [1.0]}, r"should hold integers from 0 to 5 for layer 'conv1'\. Found 1\.0\."),
        ({"conv1": [True, False]}, r"should hold integers from 0 to 5 for layer 'conv1'\. Found True\."),
        (
            {"conv1": range(6)},
            r"leave at least one filter of layer 'conv1' unmasked\. Found 6 to mask and 0 masked before, ",
        ),
    ],
    ids=str,
)
def test_bad_filters_are_refused_and_touch_nothing(filters: dict, message: str) -> None:
    model = pretrained()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        mask_filters(model, {"conv2": [0], **filters}, example_input=IMAGES)
    assert same(bits(model), before)


def planted() -> tuple[nn.Module, AnomalyReport]:
    """Two filters, of which the first answers to one sample far more than to the others, and a report on them."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([1.0, 0.0])[:, None, None, None]
    images = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[7] *= 30
    return conv, analyze(conv, images)


def test_a_report_stands_for_its_anomaly_filters() -> None:
    conv, report = planted()
    assert report.anomaly_filters == {"": [0]}
    mask = mask_filters(conv, report)
    assert mask.masked == {"": [0]}
    assert conv.weight.count_nonzero() == 0
    mask.add(report)
    assert mask.masked == {"": [0]}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["conv1"], r"`filters` should be `{layer: \[filter, \.\.\.\]}` or an AnomalyReport\. Found a list\.$"),
        ("conv1", r"`filters` should be `{layer: \[filter, \.\.\.\]}` or an AnomalyReport\. Found a str\.$"),
        (None, r"`filters` should be `{layer: \[filter, \.\.\.\]}` or an AnomalyReport\. Found a NoneType\.$"),
        ({"conv1": 3}, r"`filters` should hold a list of filters for layer 'conv1', such as \[3\]\. Found 3\.$"),
    ],
    ids=str,
)
def test_filters_of_another_kind_are_refused_and_touch_nothing(filters: Any, message: str) -> None:
    model = pretrained()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        mask_filters(model, filters, example_input=IMAGES)
    assert same(bits(model), before)


def test_a_single_optimizer_is_refused_before_anything_is_masked() -> None:
    model = pretrained()
    before, optimizer = bits(model), torch.optim.SGD(model.parameters(), 0.1)
    message = r"`optimizers` should be a list of optimizers\. Found a SGD: give `\[optimizer\]`\.$"
    with pytest.raises(ValueError, match=message):
        mask_filters(model, FILTERS, example_input=IMAGES, optimizers=optimizer)
    assert same(bits(model), before)
    with pytest.raises(ValueError, match=message):
        FilterMask(model).keep(optimizer)


@pytest.mark.parametrize("model", ["last.ckpt", nn.Conv2d(1, 1, 1).state_dict()], ids=["file", "state_dict"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"Parameter `model` should be a torch\.nn\.Module\. Found "):
        mask_filters(model, {"0": [1]})


def test_never_masks_a_whole_layer_not_even_bit_by_bit() -> None:
    model = pretrained()
    mask = mask_filters(model, {"conv1": [0, 1, 2, 2]}, example_input=IMAGES)
    with pytest.raises(ValueError, match=r"Found 4 to mask and 3 masked before, of the 6 it has\."):
        mask.add({"conv1": [2, 3, 4, 5]})
    assert mask.masked == {"conv1": [0, 1, 2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"`flow` or `example_input` should be given for a model with normalisation layers.* Found neither\."),
        ({"flow": NormFlow({"up": []})}, r"should have seen a call of layer 'conv1'\. Found calls of \['up'\]\."),
        (
            {"flow": NormFlow({"conv1": ["x"]})},
            r"name normalisation layers .* 6 channels behind layer 'conv1'\. Found 'x'\.",
        ),
        ({"flow": NormFlow({"conv1": ["head"]})}, r"should name normalisation layers of the model, .* Found 'head'\."),
        (
            {"flow": NormFlow({"conv1": ["small"]})},
            r"should name normalisation layers of the model, .* Found 'small'\.",
        ),
    ],
    ids=str,
)
def test_an_unknown_norm_is_refused_and_touches_nothing(options: dict, message: str) -> None:
    model = pretrained()
    model.small = nn.BatchNorm2d(3)
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        mask_filters(model, {"conv1": [1]}, **options)
    assert same(bits(model), before)


def test_the_fraction_leaves_out_lazy_parameters_which_have_no_size_yet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyLinear(2))
    mask = FilterMask(model)
    assert mask.parameter_fraction == 0
    mask.add({"0": [1]})
    assert mask.parameter_fraction == 0.25
