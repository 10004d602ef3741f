"""A callback that takes more than a tenth of the time says so once, and what would be cheaper."""

from pathlib import Path

import pytest
from trainers import QUIET, fit, watcher

from lightning_anomaly import TwoSampleCallback
from lightning_anomaly.callbacks import _cost, _watching

pytestmark = QUIET


@pytest.mark.parametrize(("seconds", "period"), [(9.9, 100), (0.9, 1), (1, 5)])
def test_up_to_a_tenth_of_the_time_or_a_second_nothing_is_said(seconds: float, period: float) -> None:
    assert _cost.cost_advice("Callback", seconds, period, {"less": 5}) is None


def test_the_largest_savings_are_named() -> None:
    savings = _cost.estimate_savings(20, 2, {"probe_size": (512, 256)})
    assert savings == {"`every_n_validations = 10`": 16, "`probe_size = 256`": 10}
    text = _cost.cost_advice("Callback", 24, 60, {**savings, "nothing": 0.1})
    assert text is not None
    assert "Callback took 24 of the 60 seconds" in text
    assert "(40%)" in text
    assert text.endswith("`every_n_validations = 10` (about 16 s), `probe_size = 256` (about 10 s).")


def test_each_callback_says_it_once_with_its_own_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this test makes each call of the callbacks take a second; the first analysis does not count."""
    said: list[str] = []
    monkeypatch.setattr(_watching, "perf_counter", iter(range(10**6)).__next__)
    monkeypatch.setattr(_watching, "rank_zero_info", said.append)
    fit(tmp_path, watcher(), TwoSampleCallback(), max_epochs=2)
    assert said == []
    fit(tmp_path, watcher(), TwoSampleCallback(), max_epochs=5)
    first, second = said
    assert "AnomalyFilterCallback took" in first
    assert "`probe_size = 30`" in first
    assert "`layers`" in first
    assert "TwoSampleCallback took" in second
    assert "`sample_size = 60`" in second  # all validation images, whose pass is spared
