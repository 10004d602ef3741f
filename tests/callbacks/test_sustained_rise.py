"""The signal is 0 in health, shows a step as its height, and does not mistake fluctuation for a rise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_anomaly.callbacks._history import HOLD, THRESHOLD, rise

FRACTIONS = st.floats(0, 1, allow_subnormal=True)


def rises(series: list[float]) -> list[float]:
    """The rise after each value."""
    return [rise(series[: end + 1]) for end in range(len(series))]


@pytest.mark.parametrize("level", [0.0, 0.05, 5.0])
def test_a_constant_has_none(level: float) -> None:
    assert rises([level] * 50) == [0.0] * 50


def test_neither_has_a_fall_fast_or_slow() -> None:
    assert max(rises([0.9 * 0.8**i for i in range(60)])) == 0
    assert max(rises([0.5] * 20 + [0.1] * 20)) == 0


@pytest.mark.parametrize("height", [0.01, 0.3])
def test_a_step_shows_as_its_height_from_its_fifth_value_on(height: float) -> None:
    found = rises([0.1] * 20 + [0.1 + height] * 20)
    assert found[: 20 + HOLD - 1] == [0.0] * (20 + HOLD - 1)
    assert found[20 + HOLD - 1 :] == pytest.approx([height] * (21 - HOLD))


def test_the_level_is_the_lowest_there_was() -> None:
    assert rise([0.5] * 10 + [0.1] * 10 + [0.3] * 10) == pytest.approx(0.2)


def test_it_ends_when_the_series_falls_back() -> None:
    assert rise([0.1] * 10 + [0.4] * 10 + [0.1]) == 0


def test_single_odd_values_show_nothing() -> None:
    series = [0.1] * 40
    for odd in (8, 15, 22, 29, 36):
        series[odd] = 0.9
    series[11] = series[33] = 0.0
    assert max(rises(series)) == 0


def test_a_slow_rise_shows_all_but_the_ends() -> None:
    series = [0.1] * 10 + [0.1 + 0.01 * i for i in range(41)]
    assert rise(series) == pytest.approx(0.4 - 0.01 * (HOLD - 1))


def test_too_few_values_have_none() -> None:
    assert rises([0.0] * (HOLD - 1) + [1.0] * HOLD)[-1] == 0
    assert rises([0.0] * HOLD + [1.0] * HOLD)[-1] == 1
    assert rise([]) == 0


@given(st.lists(FRACTIONS, max_size=40))
def test_it_is_finite_and_within_the_range_of_the_series(series: list[float]) -> None:
    found = rise(series)
    assert math.isfinite(found)
    assert 0 <= found <= (max(series) - min(series) if series else 0)


@given(st.lists(FRACTIONS, max_size=40))
def test_it_is_0_for_every_series_that_never_increases(series: list[float]) -> None:
    assert rise(sorted(series, reverse=True)) == 0


@given(st.lists(FRACTIONS, min_size=2 * HOLD, max_size=30))
def test_it_says_what_it_says_it_says(series: list[float]) -> None:
    """All of the last five values lie that far above all five of an earlier stretch, and above none farther."""
    last, before = series[-HOLD:], series[:-HOLD]
    stretches = [before[i : i + HOLD] for i in range(len(before) - HOLD + 1)]
    gaps = [min(new - old for new in last for old in stretch) for stretch in stretches]
    assert rise(series) == pytest.approx(max(0.0, *gaps), abs=1e-12)


def test_fluctuation_around_a_constant_stays_below_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    flagged = torch.rand(200, 100, 160, generator=generator) < 0.05
    assert max(max(rises(series)) for series in flagged.double().mean(2).tolist()) < THRESHOLD
