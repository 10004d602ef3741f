"""The rules of early stopping as functions of the measured values."""

import math
from collections.abc import Sequence
from statistics import geometric_mean, pstdev

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_anomaly.memorization.stop_rule import (
    SMOOTHING,
    SPIKE_WINDOW,
    ErrorRise,
    error_level,
    loss_trend,
    mean_error_level,
    rise_over,
    standard_error,
)


def added(ratios: list[float], rise: ErrorRise | None = None, scales: list[float] | None = None) -> list[float]:
    """Compute rises for equal images; `scales` are the expected errors of the training images."""
    rise, ones = rise or ErrorRise(), torch.ones(1000)
    pairs = zip(ratios, scales or [0.1] * len(ratios), strict=True)
    return [rise.add(ones * scale, ones * scale * ratio) for ratio, scale in pairs]


def test_a_rise_is_that_of_the_mean_of_three_over_its_lowest_value() -> None:
    ratios = [1.5, 1.5, 1.56, 1.47, 1.5, 1.5, 1.53, 1.53, 1.53]
    rises = added(ratios)
    assert rises[:2] == [0, 0]
    assert rises[-1] == pytest.approx(1.53 / geometric_mean(ratios[3:6]) - 1, rel=1e-4)
    assert added([1.5, 1.2, 1.1, 0.8])[-1] == 0


def test_validations_have_equal_weights_whatever_their_expected_errors() -> None:
    ratios = [1.3, 1.3, 1.0, 1.3, 1.3, 1.3]
    assert added(ratios, scales=[0.1, 0.1, 0.7, 0.1, 0.05, 0.02]) == pytest.approx(added(ratios), rel=1e-4)


def test_a_restored_state_continues() -> None:
    first = ErrorRise()
    added([1.0, 1.0, 1.0, 1.3], first)
    resumed = ErrorRise()
    resumed.load_state_dict(first.state_dict())
    assert added([1.6], resumed) == added([1.6], first) == pytest.approx([geometric_mean([1, 1.3, 1.6]) - 1])
    fresh = ErrorRise()
    for empty in ({}, ErrorRise().state_dict()):
        fresh.load_state_dict(empty)
        assert added([1.0, 1.0, 1.3], fresh)[-1] == 0


def errors(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw expected errors of the same images twice; few are uncertain, and mostly the same."""
    before = torch.rand(count, generator=generator) ** 6
    return before, (before * torch.empty(count).uniform_(0.5, 1.1, generator=generator) + 0.01).clamp(max=1)


def test_the_standard_error_is_the_spread_of_changes_over_draws_of_images() -> None:
    """The mean of three validations has a smaller spread than one."""
    generator = torch.Generator().manual_seed(0)
    for validations, draws in ((1, 800), (3, 250)):
        changes, expected = [], []
        for _ in range(draws):
            pairs = [[errors(count, generator) for count in (200, 300)] for _ in range(validations)]
            before, now = (mean_error_level([error_level(*(p[at] for p in pair)) for pair in pairs]) for at in (0, 1))
            changes.append(now.log_ratio - before.log_ratio)
            expected.append(standard_error(before, now))
        spread = torch.tensor(changes).std().item()
        assert torch.tensor(expected).mean().item() == pytest.approx(spread, rel=0.08)


def test_too_few_expected_errors_are_counted_in_the_smaller_group() -> None:
    rise, ones = ErrorRise(), torch.ones(1000)
    for count, few in ((79, True), (80, False)):  # 9.875 errors, and just 10
        for _ in range(3):
            rise.add(0.125 * ones, 0.125 * ones[:count])
        assert rise.too_few_expected_errors == few


def test_a_rise_within_four_standard_errors_is_0() -> None:
    generator = torch.Generator().manual_seed(1)
    train, val = errors(100, generator)[0], errors(100, generator)[0]
    lowest = error_level(train, val)
    error = standard_error(lowest, error_level(train, val.flip(0)))
    assert error > 0.1
    for errors_apart, counts in ((3.9, False), (4.1, True)):
        factor = math.exp(errors_apart * error)
        found = rise_over(lowest, error_level(train, val.flip(0) * factor))
        assert found == pytest.approx(factor - 1 if counts else 0)


def test_fifty_validations_without_overfitting_give_at_most_5_percent_false_alarms() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = alarms_of_a_tenth = 0
    for _ in range(40):
        # The logit of each image fluctuates, alike for both kinds; the mean error is 1%, mostly of few images.
        logits, rise, rises, ratios = torch.randn(2, 1000, generator=generator), ErrorRise(), [], []
        for _ in range(50):
            logits = 0.9 * logits + (1 - 0.9**2) ** 0.5 * torch.randn(2, 1000, generator=generator)
            train, val = torch.sigmoid(2.5 * logits - 7)
            rises.append(rise.add(train, val))
            ratios.append(error_level(train, val).log_ratio)
        alarms += max(rises) > 0.1
        means = torch.tensor(ratios).unfold(0, 3, 1).mean(1)
        alarms_of_a_tenth += bool((means - means.cummin(0).values > 0.1).any())
    assert alarms <= 2
    assert alarms_of_a_tenth == 40  # without a look at the standard error


def test_rises_of_certain_networks_are_finite_in_float32() -> None:
    nothing, all_wrong = torch.zeros(100), torch.full((100,), 0.9)
    assert rise_over(error_level(nothing, nothing), error_level(nothing, nothing)) == 0
    largest = rise_over(error_level(all_wrong, nothing), error_level(nothing, all_wrong))
    assert largest > 1
    assert torch.isfinite(torch.tensor(largest, dtype=torch.float32))


def test_levels_with_too_few_expected_errors_of_both_kinds_do_not_count() -> None:
    rise = ErrorRise()
    added([1.0] * 3, rise, scales=[0.02] * 3)
    assert added([200.0] * 3, rise, scales=[1e-4] * 3)[-1] == pytest.approx(199, rel=1e-3)
    assert not rise.too_few_expected_errors
    assert added([90.0] * 3, rise, scales=[1e-4] * 3)[-1] == 0
    assert rise.too_few_expected_errors
    scales = [0.02] * 3 + [0.002] * 3 + [0.02] * 5
    assert added([1.0] * 3 + [0.5] * 3 + [1.02] * 5, scales=scales)[-1] == pytest.approx(0.02, rel=1e-3)


LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=30)


def since_best(losses: Sequence[float]) -> int:
    return loss_trend(losses).waited


def test_the_wait_is_restarted_neither_by_a_single_low_loss_nor_by_nan() -> None:
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.48]) == 4
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.0]) == 0
    assert since_best([1.0, 0.9, math.nan, math.inf]) == 2
    assert since_best([math.nan, math.nan]) == 0
    assert since_best([math.nan, 1.0]) == 0
    assert since_best([0.8, 1.5, math.nan, 0.79]) == 3  # the average skips NaN
    assert since_best([1.5, 1.4, 0.3, 1.1, 2.0, 0.5]) == 2  # with a weight of 0.6 it would be 3, with 0.8 none
    assert since_best([]) == 0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 1.1, 1.1, 1.1], True),
        ([1.0, 1.1, 1.1], False),  # two validations without a lower loss
        ([1.0, 2.0, 2.0, 3.0], False),  # a spike: its average is 2.0
        ([1.0, 2.0, 2.0, 1.6, 1.5], True),
        ([1.0, 1.1, 1.1, 3.0, 1.1], True),  # the spike is over
        ([1.0, 1.1, 1.1, math.nan], True),
        ([1.0, 1.1, 1.1, math.inf], False),
        ([0.1, 0.1, 0.1, 0.1], True),
        ([], False),
    ],
)
def test_a_loss_confirms_if_it_has_not_improved_and_is_no_spike(losses: list[float], expected: bool) -> None:
    assert loss_trend(losses).stalled(3) == expected


@given(LOSSES, st.floats(0.1, 10))
@settings(max_examples=50)
def test_a_trend_is_that_of_the_exponential_average_in_any_unit(losses: list[float], unit: float) -> None:
    """Losses can be negative, as logarithms of likelihoods are."""
    losses = [round(loss, 3) for loss in losses]
    averages = pd.Series(losses).ewm(alpha=1 - SMOOTHING, adjust=False).mean().round(9)
    beyond = losses[-1] - averages.iloc[-1] - pstdev(losses[-SPIKE_WINDOW:])
    assume(averages.is_unique and abs(beyond) > 1e-6)  # rounding decides otherwise
    trend = loss_trend(losses)
    assert trend[:2] == pytest.approx((averages.iloc[-1], len(losses) - 1 - int(averages.argmin())), abs=1e-8)
    for changed in ([loss - 5 for loss in losses], [loss * unit for loss in losses]):
        other = loss_trend(changed)
        assert (other.waited, other.spike) == (trend.waited, trend.spike) == (trend.waited, beyond > 0)
