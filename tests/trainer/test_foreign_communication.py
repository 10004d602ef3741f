"""Others communicate in every hook of a fit, beside our callbacks, in two processes: they hear what was said to them.

Each scenario is killed if it takes too long, and then its test fails.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from communicating import combinations
from run import outcomes_of, run_processes

COMBINATIONS = ["_".join(names) for names in combinations()]
FIGURES = {"anomaly_filters/filters", "anomaly_filters/verdicts", "anomaly_filters/outliers"}

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("communicating")
    return run_processes("communicating.py", folder, timeout=1200)


def both(folder: Path, scenario: str) -> tuple[Outcome, Outcome]:
    """What the two processes said and heard: all that was said, and each asked of the other what that asked of it."""
    first, second = outcomes_of(folder, scenario)
    for outcome in (first, second):
        assert "error" not in outcome, outcome["trace"]
    for one, two in zip(fits(first), fits(second), strict=True):
        assert one["wrong"] == two["wrong"] == []
        assert one["talks"] == two["talks"] > 5
        for key in ("calls", "order", "epochs", "weights"):
            assert one[key] == two[key], key
    return first, second


def fits(outcome: Outcome) -> list[Outcome]:
    return [fit for fit in outcome.values() if isinstance(fit, dict)]


def theirs(fit: Outcome) -> Outcome:
    """What others logged."""
    return {key: value for key, value in fit["metrics"].items() if key.startswith(("loss", "val_"))}


def test_alone_they_hear_each_other(outcomes: Path) -> None:
    first, second = both(outcomes, "without_ours")
    (fit,) = fits(first)
    assert (fit["metrics"]["val_rank"], fit["metrics"]["val_ranks"]) == (0.5, 3)
    assert theirs(fit) == theirs(fits(second)[0])


@pytest.mark.parametrize("scenario", [*COMBINATIONS, "reads", "progress_bar", "one_logger", "no_value_to_monitor"])
def test_beside_our_callbacks_they_hear_the_same(outcomes: Path, scenario: str) -> None:
    (alone,) = fits(both(outcomes, "without_ours")[0])
    for one, two in zip(*map(fits, both(outcomes, scenario)), strict=True):
        assert one["metrics"] == two["metrics"]
        assert one["epochs"] == 2
        assert set(theirs(one)) == set(theirs(alone))
        if scenario in COMBINATIONS and "prune" not in scenario:
            assert theirs(one) == theirs(alone)
            assert one["weights"] == alone["weights"]
        if "filter" in scenario or scenario not in COMBINATIONS:
            assert "anomaly_filters/count" in one["metrics"]


@pytest.mark.parametrize("scenario", [name for name in COMBINATIONS if "filter" in name])
def test_figures_and_chart_come_from_the_first_process(outcomes: Path, scenario: str) -> None:
    first, second = both(outcomes, scenario)
    for name, fit in first.items():
        if name != "warnings":
            assert fit["took"].count("layout") == ("logger=True" in name)
            assert FIGURES.issubset(fit["took"]) == (name == "figures=True logger=True")
            assert second[name]["took"] == []


def test_a_process_without_a_logger(outcomes: Path) -> None:
    (fit,) = fits(both(outcomes, "one_logger")[0])
    assert {"layout", *FIGURES} <= set(fit["took"])


def test_an_epoch_without_validation_before_the_first(outcomes: Path) -> None:
    first, _ = both(outcomes, "every_second_epoch")
    assert {"layout", *FIGURES} <= set(first["fit"]["took"])
    assert not any("nothing to analyse" in warning for warning in first["warnings"])


@pytest.mark.parametrize(
    ("scenario", "who", "why"),
    [
        ("analysis_fails", "AnomalyFilterCallback", "no memory is left"),
        ("analysis_of_another_fails", "AnomalyFilterCallback", "process 1 failed: MemoryError('no memory is left')"),
        ("sending_fails", "AnomalyFilterCallback", "process 1 failed: MemoryError('no memory is left')"),
        ("receiving_fails", "AnomalyFilterCallback", "no memory is left"),
        ("joining_fails", "AnomalyFilterCallback", "another process failed"),
        ("training_probe_fails", "AnomalyFilterCallback", "process 1 failed: MemoryError('no memory is left')"),
        ("comparison_fails", "TwoSampleCallback", "another process failed"),
    ],
)
def test_one_that_fails_is_not_waited_for(outcomes: Path, scenario: str, who: str, why: str) -> None:
    first, second = both(outcomes, scenario)
    assert [fit["epochs"] for fit in fits(first)] == [2]
    said = [warning for warning in first["warnings"] if warning.startswith(f"{who} could not")]
    assert [why in warning for warning in said] == [True]
    assert second["warnings"] == []


def test_a_choice_of_filters_that_fails_stops_both(outcomes: Path) -> None:
    for rank in range(2):
        outcome = json.loads((outcomes / f"choice_fails-2-{rank}.json").read_text())
        assert "no memory is left" in outcome["error"]


def test_a_training_probe_that_cannot_be_shared_evenly(outcomes: Path) -> None:
    first, _ = both(outcomes, "uneven_training_probe")
    assert "anomaly_filters/count" in first["fit"]["metrics"]
    few = [warning for warning in first["warnings"] if warning.startswith("AnomalyEarlyStopping judges by 28 images")]
    assert first["warnings"] == few  # all 65 samples, and none twice


def test_a_process_without_any_batch(outcomes: Path) -> None:
    first, second = both(outcomes, "no_batch")
    assert first["fit"]["metrics"] == second["fit"]["metrics"]
    assert "anomaly_filters/count" in first["fit"]["metrics"]


@pytest.mark.parametrize("scenario", ["no_validation", "no_validation_in_validate"])
def test_a_process_without_validations_is_not_waited_for(outcomes: Path, scenario: str) -> None:
    first, _ = both(outcomes, scenario)
    assert any("has no validation batch" in warning for warning in first["warnings"])


def test_processes_analyse_at_the_same_times_after_a_fit_in_which_only_one_validated(outcomes: Path) -> None:
    first, _ = both(outcomes, "after_no_validation")
    assert FIGURES.issubset(first["fit"]["took"])


def test_validate(outcomes: Path) -> None:
    first, second = both(outcomes, "validates")
    assert "anomaly_filters/count" in first["validate"]["metrics"]
    assert first["validate"]["metrics"] == second["validate"]["metrics"]
