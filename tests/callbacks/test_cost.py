"""A callback that takes more than a tenth of the time says so once, if it measured anything."""

from pathlib import Path

import pytest
from test_failing_analyses import NoConvolution
from trainers import fit, watcher

from lightning_anomaly import MemorizationCallback
from lightning_anomaly.callbacks import _guard, anomaly_filter, memorization


def test_each_callback_says_it_once_unless_it_measured_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this test makes each analysis take two seconds; the first analysis does not count."""
    said, clock = list[str](), iter(range(0, 10**6, 2)).__next__
    for module in (_guard, anomaly_filter, memorization):
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(_guard, "rank_zero_info", said.append)
    fit(tmp_path, watcher(), MemorizationCallback(), max_epochs=2)
    assert said == []
    fit(tmp_path, watcher(), MemorizationCallback(), max_epochs=5)
    assert [line.partition(" took ")[0] for line in said] == ["AnomalyFilterCallback", "MemorizationCallback"]
    assert all("`every_n_validations`" in line for line in said)
    with pytest.warns(UserWarning, match="no convolution"):
        fit(tmp_path, watcher(), module=NoConvolution(), max_epochs=5)
    assert len(said) == 2
