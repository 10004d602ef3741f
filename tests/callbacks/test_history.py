"""The history of a fit."""

from types import SimpleNamespace

import pytest

from lightning_anomaly import AnomalyFilterCallback


def test_failed_analyses_repeat_the_last_entry_and_do_not_count_for_a_rise() -> None:
    callback, trainer = AnomalyFilterCallback(), SimpleNamespace(current_epoch=0, global_step=0, is_global_zero=False)

    def add(fraction: float, times: int, n_live: int | None = 9) -> float:
        report = None if n_live is None else SimpleNamespace(n_live=n_live, notes={})
        for _ in range(times):
            callback._values = {"fraction": fraction, "rise": 0.0}
            callback._remember(trainer, None if report is None else (report, None))
        rises: list[float] = [entry["metrics"]["rise"] for entry in callback.history]
        return rises[-1]

    assert add(0.9, 5, n_live=0) == add(0.1, 7) == add(0.5, 9, n_live=None) == 0
    assert add(0.5, 5) == pytest.approx(0.4)
    assert [entry["live"] for entry in callback.history] == [False] * 5 + [True] * 7 + [False] * 9 + [True] * 5
    assert [entry["analysed"] for entry in callback.history] == [True] * 12 + [False] * 9 + [True] * 5


def test_the_state_of_version_0_2_can_be_loaded() -> None:
    entry = {"epoch": 0, "step": 2, "metrics": {"count": 3.0, "rise": 0.0}, "signal": 0.1, "anomaly_filters": {}}
    entry |= {"analysed": True, "live": True}
    callback = AnomalyFilterCallback()
    callback.load_state_dict({"history": [entry], "metrics": {}, "comparable": [0, None], "found": True})
    assert callback.history == [entry]
