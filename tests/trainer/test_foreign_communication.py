"""Foreign callbacks that communicate in every hook of a fit in two processes are not disturbed by ours.

A scenario that takes too long is killed, and its test fails.
"""

from pathlib import Path
from typing import Any

import pytest
from run import outcomes_of, run_processes

SLOW = ["one_fails", "no_batch"]

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_processes("communicating.py", tmp_path_factory.mktemp("communicating"), *SLOW)


def both(folder: Path, scenario: str, *same: str) -> tuple[Outcome, Outcome]:
    """Read the outcomes of the two processes, in which all messages must have arrived."""
    first, second = outcomes_of(folder, scenario)
    for outcome in (first, second):
        assert "error" not in outcome, outcome["trace"]
    for one, two in zip(fits(first), fits(second), strict=True):
        assert one["wrong"] == two["wrong"] == []
        assert one["talks"] == two["talks"] > 5
        for key in ("epochs", "weights", *same):
            assert one[key] == two[key], key
    return first, second


def fits(outcome: Outcome) -> list[Outcome]:
    return [fit for fit in outcome.values() if isinstance(fit, dict)]


def theirs(fit: Outcome) -> Outcome:
    """The values that the model logged."""
    return {key: value for key, value in fit["metrics"].items() if key.startswith(("loss", "val_"))}


def test_foreign_messages_arrive_with_our_callbacks_and_after_a_resume(tmp_path: Path) -> None:
    run_processes("communicating.py", tmp_path, "two_processes")
    first, second = both(tmp_path, "two_processes", "metrics")
    alone, watched, masked = (first[name] for name in ("alone", "watched", "masked"))
    assert (alone["metrics"]["val_rank"], alone["metrics"]["val_ranks"]) == (0.5, 3)
    assert theirs(watched) == theirs(alone)
    assert watched["weights"] == alone["weights"] != masked["weights"]
    assert set(theirs(masked)) == set(theirs(alone))
    for fit in (watched, masked):
        assert {"anomaly_filters/count", "memorization/auc"} <= set(fit["metrics"])
        assert fit["epochs"] == 2
    assert first["resumed"]["epochs"] == 3
    assert first["history"] == second["history"] == [0, 1, 2]


@pytest.mark.slow
def test_a_failing_process_does_not_block_the_other(slow: Path) -> None:
    first, second = both(slow, "one_fails", "metrics")
    assert first["fit"]["epochs"] == 2
    failures = [warning for warning in first["warnings"] if "Could not" in warning]
    assert [warning.split()[0] for warning in failures] == ["AnomalyFilterCallback:", "MemorizationCallback:"]
    assert all("process 1 failed: MemoryError('no memory is left')" in failure for failure in failures)
    assert second["warnings"] == []


@pytest.mark.slow
def test_a_process_without_batches_does_not_block_the_other(slow: Path) -> None:
    first, _ = both(slow, "no_batch", "metrics")
    assert "memorization/auc" in first["fit"]["metrics"]
    assert "anomaly_filters/count" not in first["fit"]["metrics"]  # half of the probe is too small
