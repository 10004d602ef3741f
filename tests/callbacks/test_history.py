"""The history of a fit."""

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_anomaly import AnomalyFilterCallback


def test_failed_analyses_repeat_the_last_entry_and_do_not_count_for_a_rise() -> None:
    """Nor does an analysis without one of the layers. Only the last entry has the flagged filters."""
    callback = AnomalyFilterCallback()
    history = callback.history

    def add(fraction: float, times: int, live: int = 9, layers: tuple[str, ...] = ("conv", "late")) -> float:
        parts = {"layers": layers, "anomaly_filters": {"conv": [1]}, "notes": {}}
        report: Any = SimpleNamespace(live_in=lambda _: live, fraction_in=lambda _: fraction, **parts)
        for _ in range(times):
            callback._values = {"rise": 0.0}
            callback._add_to_history(0, 0, report)
        return callback._values["rise"]

    assert add(0.9, 5, live=0) == add(0.1, 6) == add(0.1, 1, layers=("conv",)) == 0
    callback._values = {"rise": 0.0}
    callback._add_to_history(1, 1, None)
    assert (history[-1]["signal"], history[-1]["anomaly_filters"]) == (0.1, {"conv": [1]})
    assert add(0.5, 5) == pytest.approx(0.4)
    assert history[-1]["metrics"] == {"rise": pytest.approx(0.4)}
    assert [entry["live"] for entry in history] == [False] * 5 + [True] * 7 + [False] + [True] * 5
    assert ["anomaly_filters" in entry for entry in history] == [False] * 17 + [True]


def test_the_state_of_version_0_2_can_be_loaded() -> None:
    entry = {"epoch": 0, "step": 2, "metrics": {"count": 3.0, "rise": 0.0}, "signal": 0.1, "anomaly_filters": {}}
    entry |= {"analysed": True, "live": True}
    callback = AnomalyFilterCallback()
    callback.load_state_dict({"history": [entry], "metrics": {}, "comparable": [0, None], "found": True})
    assert callback.history == [entry]
