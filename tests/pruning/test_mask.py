"""Masked filters give exactly 0, and stay so with any optimizer."""

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acting import leak
from functional import same, state_of
from reports import layer as made_up
from torch import Tensor, nn

from lightning_anomaly import AnomalyReport
from lightning_anomaly.pruning import FilterMask, mask_filters

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3
FILTERS = {"conv1": [1, 4], "conv2": [0], "up": [2]}


class Model(nn.Module):
    """Layers that are called in another order than defined, a shortcut, and GELU, which does not hold zeros."""

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


def pretrained(seed: int = 0, **options: Any) -> Model:
    """Make a network with running statistics as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model(**options)
    for _ in range(3):
        model(3 * IMAGES + 1)
    return model


def train(model, optimizer, mask, steps=5) -> None:
    model.train()
    for _ in range(steps):
        F.cross_entropy(model(IMAGES), TARGETS).backward()
        mask.keep_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        mask.keep([optimizer])


def leaks(model: Model) -> int:
    """Count values of the masked filters' maps that are not 0."""
    return leak(model, FILTERS, IMAGES)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ],
    ids=str,
)
def test_outputs_stay_exactly_0_through_training(make: Any, options: dict[str, Any]) -> None:
    model = pretrained()
    optimizer = make(model.parameters(), **options)
    train(model, optimizer, FilterMask(model))  # so that the optimizer has a state
    assert leaks(model) > 0
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    assert leaks(model) == 0
    F.cross_entropy(model(IMAGES), TARGETS).backward()
    mask.keep_gradients()
    optimizer.step()
    assert leaks(model) > 0  # gradients of zero are not enough
    assert not mask.verify()
    unmasked = model.conv1.weight[0].clone()
    mask.keep([optimizer])
    train(model, optimizer, mask)
    assert leaks(model) == 0
    assert mask.verify()
    assert not torch.equal(model.conv1.weight[0], unmasked)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_masking_clears_only_the_masked_rows_of_an_optimizer() -> None:
    model = pretrained()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    train(model, optimizer, FilterMask(model))
    before = copy.deepcopy(optimizer.state[model.conv1.weight])
    others = {"row_var": torch.ones(6, 3, 3, 1), "name": "not a tensor"}
    optimizer.state[model.conv1.weight].update(others)
    mask_filters(model, {"conv1": [1, 4]}, example_input=IMAGES, optimizers=[optimizer])
    after = optimizer.state[model.conv1.weight]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert after[key][[1, 4]].count_nonzero() == 0
        assert torch.equal(after[key][[0, 2, 3, 5]], before[key][[0, 2, 3, 5]])
    assert after["step"] == before["step"] == 5
    assert after["row_var"].count_nonzero() == after["row_var"].numel()
    assert optimizer.state[model.norm1.weight]["exp_avg"][[1, 4]].count_nonzero() == 0


INSTANCE_NORM = {"norm": nn.InstanceNorm2d, "affine": True, "track_running_stats": True}


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, INSTANCE_NORM], ids=str)
def test_outputs_are_0_behind_every_norm_of_single_channels(options: dict[str, Any]) -> None:
    model = pretrained(**options)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    assert leaks(model) == 0
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), mask, steps=2)
    assert leaks(model) == 0


def test_norms_that_mix_channels_give_one_warning_and_are_unchanged() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, padding=1), nn.LayerNorm([6, 6, 6])
    )
    before = state_of(model[1])
    with pytest.warns(UserWarning, match=r"'1' \(GroupNorm\), '3' \(LayerNorm\)") as caught:
        mask = mask_filters(model, {"0": [1], "2": [0, 5]}, example_input=IMAGES)
    assert [warning.filename for warning in caught] == [__file__]
    assert same(state_of(model[1]), before)
    assert model[:2](IMAGES)[:, 1].count_nonzero() > 0  # as the warning says
    assert mask.masked == {"0": [1], "2": [0, 5]}


def test_a_mask_can_grow_and_counts_its_parameters() -> None:
    model = pretrained()
    maps = model.eval().maps(IMAGES)["norm1"]
    mask = mask_filters(model, {"conv1": [4]}, example_input=IMAGES)
    others = [0, 1, 2, 3, 5]
    assert torch.equal(model.maps(IMAGES)["norm1"][:, others], maps[:, others])  # bit-identical
    size = sum(p.numel() for p in model.parameters())
    assert mask.parameter_fraction == (3 * 9 + 1 + 2) / size
    mask.add({"conv1": [1, 4], "conv2": [0], "up": (2,)}, example_input=IMAGES)
    assert mask.masked == FILTERS
    assert mask.parameter_fraction == (2 * (3 * 9 + 1 + 2) + (2 * 9 + 1 + 2) + (3 * 4 + 1)) / size
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    train(model, optimizer, mask, steps=3)
    assert leaks(model) == 0
    model.norm1.bias.data[4] = 1
    assert not mask.verify()


def test_a_mask_follows_parameters_to_other_tensors() -> None:
    model = pretrained()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    model.load_state_dict(pretrained(seed=1).double().state_dict(), assign=True)
    assert not mask.verify()
    mask.keep()
    assert mask.verify()


def test_a_state_has_plain_values_and_masks_another_copy(tmp_path) -> None:
    model, average = pretrained(), pretrained(seed=1)
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    state = mask.state_dict()
    assert state == {"filters": FILTERS, "zeros": {"norm1": [1, 4], "norm2": [0]}}
    torch.save(state, tmp_path / "mask.ckpt")
    again = FilterMask.from_state_dict(average, torch.load(tmp_path / "mask.ckpt", weights_only=True))
    assert leaks(average) == 0
    assert again.state_dict() == json.loads(json.dumps(state))
    assert again.parameter_fraction == mask.parameter_fraction
    train(average, torch.optim.Adam(average.parameters()), again)
    assert leaks(average) == 0
    again.add({"conv1": [2]}, example_input=IMAGES)
    assert average.norm1.bias.eq(0).nonzero()[:, 0].tolist() == [1, 2, 4]
    assert leaks(average) == 0


def test_a_state_of_another_model_is_refused() -> None:
    for state in ({"filters": {"conv9": [1]}, "zeros": {}}, {"filters": {}, "zeros": {"conv1": [0]}}):
        with pytest.raises(ValueError, match=r"Found .*conv"):
            FilterMask.from_state_dict(Model(), state)


def test_a_report_masks_its_anomaly_filters() -> None:
    conv = nn.Conv2d(1, 3, 1, bias=False)
    report = AnomalyReport({"": made_up("normal", "anomaly", "dead")}, 60)
    mask = mask_filters(conv, report)
    assert mask.masked == {"": [1]}
    assert conv.weight.flatten().ne(0).tolist() == [True, False, True]
    mask.add(report)
    assert mask.masked == {"": [1]}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"conv9": [0]}, r"\['up', 'conv2', 'conv1'\]. Found 'conv9'"),
        ({"head": [0]}, "Found 'head'"),
        ({"conv1": [6]}, r"from 0 to 5 for layer 'conv1'. Found \[6\]"),
        ({"conv1": [-1]}, r"Found \[-1\]"),
        ({"conv1": [True, False]}, r"Found \[True, False\]"),
        ({"conv1": range(1, 6)}, "Found 5 to mask and 1 masked"),
    ],
)
def test_bad_filters_are_refused_without_a_change(filters: dict[str, Any], found: str) -> None:
    model = pretrained()
    mask = mask_filters(model, {"conv1": [0, 0]}, example_input=IMAGES)
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"`filters` .*{found}"):
        mask.add({"conv2": [0], **filters}, example_input=IMAGES)
    assert same(state_of(model), before)
    assert mask.masked == {"conv1": [0]}


def test_other_bad_arguments_are_refused_without_a_change() -> None:
    model, images = pretrained(), IMAGES
    before, optimizer = state_of(model), torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match="not iterable"):
        mask_filters(model, FILTERS, example_input=images, optimizers=optimizer)
    with pytest.raises(ValueError, match=r"`example_input`.* Found None"):
        mask_filters(model, FILTERS)
    model.uncalled = nn.Conv2d(1, 2, 3)
    with pytest.raises(ValueError, match=r"`example_input`.*'uncalled'"):
        mask_filters(model, {"conv1": [0], "uncalled": [1]}, example_input=images)
    del model.uncalled
    with pytest.raises(TypeError, match=r"`model`.* Found 'last\.ckpt'"):
        mask_filters("last.ckpt", FILTERS)
    assert same(state_of(model), before)
