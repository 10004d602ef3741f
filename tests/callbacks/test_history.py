"""What a fit remembers; its rise is 0 in health, shows a step as its height, and mistakes no fluctuation for it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_anomaly import AnomalyFilterCallback
from lightning_anomaly.callbacks._history import HOLD, THRESHOLD, last_values, remember, rise

FRACTIONS = st.floats(0, 1, allow_subnormal=True)


def rises(series: list[float]) -> list[float]:
    """The rise after each value."""
    return [rise(series[: end + 1]) for end in range(len(series))]


@pytest.mark.parametrize("height", [0.01, 0.3])
def test_a_step_shows_as_its_height_from_its_fifth_value_on(height: float) -> None:
    found = rises([0.1] * 20 + [0.1 + height] * 20)
    assert found[: 20 + HOLD - 1] == [0.0] * (20 + HOLD - 1)
    assert found[20 + HOLD - 1 :] == pytest.approx([height] * (21 - HOLD))


def test_the_level_is_the_lowest_there_was_and_a_rise_ends_when_the_series_falls_back() -> None:
    assert rise([0.5] * 10 + [0.1] * 10 + [0.3] * 10) == pytest.approx(0.2)
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
def test_it_is_0_for_every_series_that_never_increases(series: list[float]) -> None:
    assert rise(sorted(series, reverse=True)) == 0


@given(st.lists(FRACTIONS, min_size=2 * HOLD, max_size=30))
def test_it_says_what_it_says_it_says(series: list[float]) -> None:
    """All of the last five values lie that far above all five of an earlier stretch, and above none farther."""
    last, before = series[-HOLD:], series[:-HOLD]
    stretches = [before[i : i + HOLD] for i in range(len(before) - HOLD + 1)]
    gaps = [min(new - old for new in last for old in stretch) for stretch in stretches]
    assert rise(series) == pytest.approx(max(0.0, *gaps), abs=1e-12)
    assert math.isfinite(rise(series))


def test_fluctuation_around_a_constant_stays_below_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    flagged = torch.rand(200, 100, 160, generator=generator) < 0.05
    assert max(max(rises(series)) for series in flagged.double().mean(2).tolist()) < THRESHOLD


def test_validations_that_find_nothing_repeat_what_there_was_and_are_no_level_of_a_rise() -> None:
    """Also where a layer is left out once, and the last entry alone has the flagged filters."""
    history: list[dict[str, Any]] = []

    def add(fraction: float, times: int, live: int = 9, layers: tuple[str, ...] = ("conv", "late")) -> float:
        parts = {"layers": layers, "anomaly_filters": {"conv": [1]}, "notes": {}}
        report: Any = SimpleNamespace(live_in=lambda _: live, fraction_in=lambda _: fraction, **parts)
        for _ in range(times):
            values = {**last_values(history, ["conv", "late"]), "count": 3.0}
            remember(history, SimpleNamespace(current_epoch=0, global_step=0), values, report, None)
        return history[-1]["metrics"]["rise"]

    assert add(0.9, 5, live=0) == add(0.1, 6) == add(0.1, 1, layers=("conv",)) == 0
    remember(history, SimpleNamespace(current_epoch=1, global_step=2), last_values(history), None, None)
    assert history[-1]["signal"] == 0.1
    assert history[-1]["anomaly_filters"] == {"conv": [1]}
    assert add(0.5, 5) == pytest.approx(0.4)
    assert [entry["live"] for entry in history] == [False] * 5 + [True] * 7 + [False] + [True] * 5
    assert ["anomaly_filters" in entry for entry in history] == [False] * 17 + [True]
    assert last_values(history, ["other"]) == {**last_values([], ["other"]), "count": 3.0, "rise": pytest.approx(0.4)}


def test_the_state_of_earlier_releases_is_taken() -> None:
    entry = {"epoch": 0, "step": 2, "metrics": {"count": 3.0, "rise": 0.0}, "signal": 0.1, "anomaly_filters": {}}
    callback = AnomalyFilterCallback()
    for live in ({}, {"live": True}):  # 0.1, 0.2
        callback.load_state_dict(
            {"history": [{**entry, "analysed": True, **live}], "metrics": {}, "comparable": [0, None], "found": True}
        )
        assert callback.history == [{**entry, "analysed": True, "live": True}]
