"""A mask changes only the rows of its filters, which give exactly 0, and stay so with any optimizer."""

import copy
import json
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from acting import GeluNet, leak
from functional import same, state_of
from reports import layer as made_up
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_anomaly import AnomalyReport
from lightning_anomaly.pruning import FilterMask, mask_filters

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3
FILTERS = {"conv1": [1, 4], "conv2": [0], "up": [2]}


def pretrained(norm: Any = nn.BatchNorm2d, **options: Any) -> GeluNet:
    """Make a network with running statistics as after training."""
    model = GeluNet(norm=partial(norm, **options))
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


def leaks(model: GeluNet) -> int:
    return leak(model, FILTERS, IMAGES)


def test_outputs_stay_exactly_0_through_training() -> None:
    model = pretrained()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True, weight_decay=0.1)
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
    others = {"row_var": torch.ones(6, 1, 3, 1), "name": "not a tensor"}
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
        nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, padding=1), nn.LayerNorm([6, 6, 6])
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
    assert mask.parameter_fraction == (9 + 1 + 2) / size
    mask.add({"conv1": [1, 4], "conv2": [0], "up": (2,)}, example_input=IMAGES)
    assert mask.masked == FILTERS
    assert mask.parameter_fraction == (2 * (9 + 1 + 2) + (6 * 9 + 1) + (4 * 4 + 1)) / size
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    train(model, optimizer, mask, steps=3)
    assert leaks(model) == 0
    model.norm1.bias.data[4] = 1
    assert not mask.verify()


def test_layers_that_share_a_weight_are_masked_together_and_named_unless_both_are() -> None:
    for filters in ({"0": [1]}, {"0": [1], "1": [1, 2]}, {"0": [1, 2], "1": [1, 2]}):
        tied = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3, bias=False))
        tied[1].weight = tied[0].weight
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mask_filters(tied, filters)
        masked = filters.get("1", [1])
        assert tied[1](IMAGES)[:, masked].count_nonzero() == 0
        assert len(caught) == (filters.get("0") != filters.get("1"))
        assert all("'0' with ['1']" in str(warning.message) for warning in caught)


def test_a_mask_follows_parameters_to_other_tensors() -> None:
    model = pretrained()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    model.load_state_dict(pretrained().double().state_dict(), assign=True)
    assert not mask.verify()
    mask.keep()
    assert mask.verify()


def test_a_state_has_plain_values_and_masks_another_copy(tmp_path) -> None:
    model, average = pretrained(), pretrained()
    mask = mask_filters(model, FILTERS, example_input=IMAGES)
    state = mask.state_dict()
    assert state == {"filters": FILTERS, "zeros": {"norm1": [1, 4]}}
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
            FilterMask.from_state_dict(GeluNet(), state)


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
        ({"conv9": [0]}, r"\['conv1', 'conv2', 'up'\]. Found 'conv9'"),
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


CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(4, 6, 3),
    "2d": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    "3d": lambda: nn.Conv3d(4, 6, 2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 6, 3, bias=False),
    "transposed 2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(4, 6, 2),
    "grouped transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "depthwise transposed": lambda: nn.ConvTranspose2d(4, 8, 3, groups=4, bias=False),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = [(kind, [[0], [1, 4], [5, 3, 2]][i % 3], DTYPES[i % 4]) for i, kind in enumerate(CONVOLUTIONS)]


@pytest.mark.parametrize(("kind", "filters", "dtype"), CASES, ids=str)
def test_a_mask_changes_only_its_filters(kind: str, filters: list[int], dtype: torch.dtype) -> None:
    """Their outputs and gradients are 0; those of the others are bit-identical."""
    conv = CONVOLUTIONS[kind]().to(dtype)
    inputs = torch.randn(3, 4, *[5] * len(conv.kernel_size), generator=torch.Generator().manual_seed(1)).to(dtype)
    before = conv(inputs)
    before.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in conv.named_parameters()}
    mask = mask_filters(conv, {"": filters})
    after = conv(inputs)
    others = [channel for channel in range(conv.out_channels) if channel not in filters]
    assert before.abs().flatten(2).sum(2).min() > 0
    assert after[:, filters].count_nonzero() == 0
    assert torch.equal(after[:, others], before[:, others])
    assert mask.verify()
    mask.keep_gradients()
    lost = [((p.grad == 0) & (gradients[name] != 0)).sum().item() for name, p in conv.named_parameters()]
    masked = round(mask.parameter_fraction * sum(p.numel() for p in conv.parameters()))
    assert sum(lost) == masked
    assert all(torch.isfinite(p.grad).all() and p.dtype == dtype for p in conv.parameters())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


REFUSED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "old weight_norm": lambda: torch.nn.utils.weight_norm(nn.Conv2d(4, 6, 3)),
    "custom bias": lambda: parametrize.register_parametrization(nn.Conv2d(4, 6, 3), "bias", Doubled()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", REFUSED)
def test_parametrized_weights_are_refused_and_unchanged(how: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), REFUSED[how]()).eval()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"`filters` .* Found '1'"):
        mask_filters(model, {"0": [1], "1": [1]})
    assert same(model.state_dict(), before)
