"""The selection of filters to mask, within limits, and controls that ignore outliers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import layer as made_up
from torch import nn

from lightning_anomaly import AnomalyReport
from lightning_anomaly.pruning.selection import Summary, choose_filters, choose_others, filter_norms, summarize

SUMMARIES = st.lists(
    st.fixed_dictionaries({"a": st.lists(st.integers(-1, 6), min_size=8, max_size=8), "b": st.just([3, 3, 0])}),
    min_size=1,
    max_size=4,
)


def choose(*summaries: Summary, masked: dict | None = None, votes: int = 1, fraction: float = 1.0) -> dict:
    return choose_filters(summaries, masked or {}, min_votes=votes, max_fraction=fraction)


def test_a_summary_counts_outlier_samples_and_marks_unclustered_filters() -> None:
    verdicts = ("normal", "anomaly", "dead", "anomaly", "nonfinite")
    report = AnomalyReport({"conv": made_up(*verdicts, outliers={1: [3, 5], 3: [2]})}, 60)
    assert summarize(report) == {"conv": [0, 2, -1, 1, -1]}


def test_filters_are_ordered_by_votes_then_outlier_samples_then_index() -> None:
    first = {"conv": [1, 5, 2, 0, 2, -1]}
    second = {"conv": [1, 0, 3, 9, 3, -1]}
    assert choose(first, second) == {"conv": [2, 4, 0, 3, 1]}
    assert choose(first, second, votes=2) == {"conv": [2, 4, 0]}
    assert choose(first, second, votes=3) == {}
    assert choose() == {}


@pytest.mark.parametrize(("fraction", "room"), [(0.01, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 7)])
def test_at_most_a_fraction_of_a_layer_is_selected_and_never_all(fraction: float, room: int) -> None:
    summary = {"conv": [1, 2, 3, 4, 5, 6, 7, 8]}
    assert choose(summary, fraction=fraction).get("conv", []) == [7, 6, 5, 4, 3, 2, 1][:room]
    left = max(0, room - 2)
    assert choose(summary, masked={"conv": [0, 7]}, fraction=fraction).get("conv", []) == [6, 5, 4, 3, 2][:left]


def test_a_layer_that_is_missing_in_a_report_gets_no_vote_from_it() -> None:
    assert choose({"gone": [4, 4]}, {"conv": [0, 1, 1]}, fraction=0.7) == {"conv": [1, 2]}


@given(SUMMARIES, st.sets(st.integers(0, 7), max_size=7), st.integers(1, 4), st.floats(0.01, 1))
@settings(max_examples=50)
def test_limits_hold_and_controls_have_the_same_counts(
    summaries: list[Summary], masked: set[int], votes: int, fraction: float
) -> None:
    gone = {"a": sorted(masked)}
    chosen = choose(*summaries, masked=gone, votes=votes, fraction=fraction)
    norms = {"a": [float(i) for i in range(8)], "b": [1.0, 2.0, 3.0]}
    for found in (
        chosen,
        choose_others(chosen, summaries[-1], gone, None, "0 5"),
        choose_others(chosen, summaries[-1], gone, norms, ""),
    ):
        assert {layer: len(filters) for layer, filters in found.items()} == {n: len(f) for n, f in chosen.items()}
        for layer, filters in found.items():
            size = len(summaries[-1][layer])
            after = {*gone.get(layer, []), *filters}
            assert len(after) == len(filters) + len(gone.get(layer, []))
            assert len(after) <= max(len(gone.get(layer, [])), min(size - 1, fraction * size + 1e-9))


def test_random_filters_depend_only_on_seed_and_layer_and_are_not_dead() -> None:
    last = {"a": [1, 0, 0, -1, 2, 0, -1, 0], "b": [1] * 8}
    drawn = choose_others({"a": [4, 0], "b": [0]}, last, {"a": [7]}, None, "1")
    assert drawn["a"] == choose_others({"a": [4, 0]}, last, {"a": [7]}, None, "1")["a"]
    assert not {3, 6, 7}.intersection(drawn["a"])
    draws = {tuple(choose_others({"a": [4, 0]}, last, {}, None, str(seed))["a"]) for seed in range(20)}
    assert len(draws) > 5
    only_dead = choose_others({"a": [0, 1, 2]}, {"a": [0, -1, -1, 0]}, {}, None, "1")["a"]
    assert {0, 3} < set(only_dead)


def test_the_l1_control_selects_the_smallest_weights() -> None:
    last, norms = {"a": [0, 0, -1, 0]}, {"a": [3.0, 1.0, 0.5, 2.0]}
    assert choose_others({"a": [0, 0]}, last, {}, norms, "") == {"a": [1, 3]}


@pytest.mark.parametrize(
    ("conv", "axes"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), 1),
        (nn.Conv3d(2, 4, 2, bias=False), 3),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), 2),
        (nn.ConvTranspose1d(3, 5, 2), 1),
    ],
    ids=str,
)
def test_norms_are_of_the_weights_of_a_filter(conv: nn.Module, axes: int) -> None:
    weight = conv.weight.detach().requires_grad_()
    maps = torch.func.functional_call(conv, {"weight": weight}, torch.rand(2, conv.in_channels, *[5] * axes))
    norms = []
    for index in range(conv.out_channels):
        (gradient,) = torch.autograd.grad(maps[:, index].sum(), weight, retain_graph=True)
        norms.append(weight.detach()[gradient != 0].abs().sum().item())
    assert filter_norms(conv) == pytest.approx(norms, rel=1e-5)
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(conv))
    assert filter_norms(normed) == pytest.approx(filter_norms(conv), rel=1e-6)
