"""The rise of the fraction of anomaly filters lasts, and no single value matters."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_anomaly.filters.fraction_rise import HOLD, fraction_rise


@example([0.0] * HOLD + [1.0] * HOLD)
@given(st.lists(st.floats(0, 1, allow_subnormal=True), min_size=HOLD, max_size=30))
def test_a_rise_is_the_largest_gap_between_the_last_values_and_an_earlier_stretch(series: list[float]) -> None:
    """All of the last five values lie above all five values of the stretch, by at least that much."""
    last, before = series[-HOLD:], series[:-HOLD]
    stretches = [before[i : i + HOLD] for i in range(len(before) - HOLD + 1)]
    gaps = [min(new - old for new in last for old in stretch) for stretch in stretches]
    assert fraction_rise(series) == pytest.approx(max([0.0, *gaps]), abs=1e-12)
    assert math.isfinite(fraction_rise(series))
    assert fraction_rise([]) == 0
