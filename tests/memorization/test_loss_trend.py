"""The rules of early stopping as functions of the measured values."""

import math
from collections.abc import Sequence
from statistics import pstdev

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_anomaly.memorization.loss_trend import SMOOTHING, SPIKE_WINDOW, loss_trend, stalled

LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=30)


def since_best(losses: Sequence[float]) -> int | None:
    trend = loss_trend(losses)
    return None if trend is None else trend.waited


def test_the_wait_is_restarted_neither_by_a_single_low_loss_nor_by_nan() -> None:
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.48]) == 4
    assert since_best([0.5, 0.6, 0.7, 0.8, 0.0]) == 0
    assert since_best([1.0, 0.9, math.nan, math.inf]) == 2
    assert since_best([math.nan, math.nan]) is None
    assert since_best([math.nan, 1.0]) == 0
    assert since_best([0.8, 1.5, math.nan, 0.79]) == 3  # the average skips NaN
    assert since_best([1.5, 1.4, 0.3, 1.1, 2.0, 0.5]) == 2  # with a weight of 0.6 it would be 3, with 0.8 none
    assert since_best([]) is None


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
    assert stalled(loss_trend(losses), 3) == expected


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
