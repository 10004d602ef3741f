"""Two processes on the CPU (gloo). Each scenario is killed if it takes too long, and then its tests fail."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from run import outcomes_of, run_processes, run_script

SCENARIOS = [
    *(
        "same",
        "val_probe",
        "whole_set",
        "train_probe",
        "uneven",
        "same_set",
        "empty",
        "empty_validate",
        "empty_iterable",
        "stops",
        "fails",
    ),
    *(
        "fails_and_raises",
        "train_probe_fails",
        "other_size",
        "other_layers",
        "one_sees_nan",
        "one_sees_other_images",
        "one_leaves_some_out",
        "every_second",
    ),
    *("prunes", "stops_itself", "compares", "compares_empty", "compares_empty_iterable", "compares_and_fails"),
    "output_stops",
]

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    return run_processes("ddp.py", folder, *SCENARIOS, timeout=1200)


def without_points(report: Outcome | None) -> Outcome | None:
    """What the other processes know of the report of process 0."""
    if report is None:
        return None
    layers = {}
    for name, layer in report["layers"].items():
        none: list[list[int]] = [[] for _ in layer["verdicts"]]
        layers[name] = {**layer, "points": none, "labels": none}
    return {**report, "layers": layers}


def pair(folder: Path, scenario: str) -> tuple[Outcome, Outcome]:
    """What the two processes of a fit without errors saw: in everything that is logged or decided, the same."""
    first, second = outcomes_of(folder, scenario)
    assert not {"error"} & {*first, *second}, (first, second)
    for key in ("epochs", "weights"):
        assert first[key] == second[key], key
    assert without_points(first["report"]) == second["report"]
    assert first["metrics"] == second["metrics"]
    assert all(math.isfinite(value) for value in first["metrics"].values())
    for one, two in zip(first["history"], second["history"], strict=True):
        assert {**one, "metrics": {**one["metrics"], "seconds": 0}} == {
            **two,
            "metrics": {**two["metrics"], "seconds": 0},
        }
    assert not second["warnings"]  # the first process says it
    return first, second


def test_both_see_the_same(outcomes: Path) -> None:
    first, _ = pair(outcomes, "same")
    assert first["report"]["n_samples"] == 90
    assert len(first["history"]) == first["epochs"] == 3
    assert first["metrics"]["anomaly_filters/count"] > 0
    assert not first["warnings"]


@pytest.mark.parametrize("scenario", ["val_probe", "whole_set", "train_probe"])
def test_number_of_processes_does_not_matter(outcomes: Path, scenario: str) -> None:
    (alone,) = outcomes_of(outcomes, scenario, world=1)
    first, _ = pair(outcomes, scenario)
    one, two = alone["report"], first["report"]
    assert one["n_samples"] == two["n_samples"] == {"val_probe": 90, "whole_set": 95, "train_probe": 81}[scenario]
    assert one["notes"] == two["notes"]
    assert alone["warnings"] == first["warnings"]
    assert list(one["layers"]) == list(two["layers"])
    for name, layer in one["layers"].items():
        other = two["layers"][name]
        for key in ("verdicts", "n_components", "labels", "outliers", "smallest_share", "map_size"):
            assert layer[key] == other[key], (name, key)
        # A convolution over other batches rounds otherwise; a repeated sample counts in the share of zeros.
        assert layer["sparsity"] == pytest.approx(other["sparsity"], abs=0.01)
        assert layer["explained"] == pytest.approx(other["explained"], abs=1e-4)
        # So it may change the order of two nearly equal values, and with it a rank.
        assert layer["outlier_scores"] == pytest.approx(other["outlier_scores"], abs=0.2)


def test_uneven_shards(outcomes: Path) -> None:
    first, _ = pair(outcomes, "uneven")
    assert first["report"]["n_samples"] == 45 + 26  # no more than half of the probe from each process
    assert [warning.startswith("The probe has 71 samples") for warning in first["warnings"]] == [True]


def test_a_process_whose_validation_yields_nothing(outcomes: Path) -> None:
    first, _ = pair(outcomes, "empty_iterable")
    assert first["report"]["n_samples"] == 60
    assert first["metrics"]["anomaly_filters/count"] > 0


def test_a_process_that_runs_no_validation(outcomes: Path) -> None:
    # Lightning skips it there, so whoever waits for that process waits for ever.
    first, second = outcomes_of(outcomes, "empty")
    assert not {"error"} & {*first, *second}, (first, second)
    assert first["epochs"] == second["epochs"] == 3
    assert first["report"] is second["report"] is None
    assert any("has no validation batch" in warning for warning in first["warnings"])
    assert second["metrics"] == {}
    assert set(first["metrics"].values()) == {0.0}


def test_validate_where_one_process_has_no_batch(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "empty_validate")
    assert not {"error"} & {*first, *second}, (first, second)
    assert first["seen"] is second["seen"] is None
    assert any("has no validation batch" in warning for warning in first["warnings"])
    assert first["samples"] == second["samples"] == 90  # and it goes on working afterwards
    assert first["logged"] == second["logged"]


def test_processes_compare_the_same_images(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "compares", world=1)
    assert alone["metrics"]["two_sample/count"] == sum(map(len, alone["filters"].values())) > 0
    for scenario in ("compares", "compares_empty_iterable"):
        for outcome in outcomes_of(outcomes, scenario):
            assert (outcome["epochs"], outcome["warnings"]) == (alone["epochs"], alone["warnings"])
            assert outcome["metrics"]["two_sample/count"] == sum(map(len, outcome["filters"].values())) > 0
    assert [outcome["filters"] for outcome in outcomes_of(outcomes, "compares")] == [alone["filters"]] * 2


@pytest.mark.parametrize("scenario", ["compares", "compares_and_fails"])
def test_each_process_remembers_its_comparisons_and_the_first_draws_them(outcomes: Path, scenario: str) -> None:
    both = outcomes_of(outcomes, scenario)
    for outcome in both:
        compared = [entry["compares_output"] for entry in outcome["history"]]
        assert compared == ([True] * 3 if scenario == "compares" else [True, False, False])
    last = [outcome["history"][-1]["metrics"] for outcome in both]
    assert last[0] == last[1]  # the first step of the validation has brought the BatchNorm of process 0
    for name, value in last[0].items():
        assert both[0]["metrics"][f"two_sample/{name}"] == pytest.approx(value, rel=1e-6)
    assert [len(outcome["drawn"]) for outcome in both] == [3, 0]  # the 1st, the 2nd and the last


def test_a_process_without_validation_batches_is_not_waited_for_in_a_comparison(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "compares_empty")
    assert first["metrics"] == second["metrics"] == {}
    assert [("Nothing will be compared" in warning) for warning in first["warnings"]] == [True]


def test_a_comparison_that_fails_in_one_process_goes_on_in_both_with_the_last_values(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "compares_and_fails")
    assert first["epochs"] == second["epochs"] == 3
    assert first["metrics"] == second["metrics"]
    assert first["filters"] == second["filters"]
    assert first["metrics"]["two_sample/count"] == sum(map(len, first["filters"].values()))
    assert [("another process failed" in warning) for warning in first["warnings"]] == [True]


def test_early_stopping_by_the_output_stops_both(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "output_stops")
    assert first["epochs"] == second["epochs"] == 4
    assert first["metrics"] == second["metrics"]
    assert first["reason"] == second["reason"]
    assert (
        "24% more errors on validation images than at its lowest level (two_sample/confidence_rise = 0.239)"
        in first["reason"]
    )


def test_early_stopping_stops_both(outcomes: Path) -> None:
    first, _ = pair(outcomes, "stops")
    assert first["epochs"] == 3  # of 9


def test_failing_analysis_goes_on_in_both(outcomes: Path) -> None:
    first, _ = pair(outcomes, "fails")
    assert first["epochs"] == 3
    counts = [entry["metrics"]["count"] for entry in first["history"]]
    assert counts[0] > 0
    assert len(set(counts)) == 1
    assert [("the analysis broke" in warning) for warning in first["warnings"]] == [True]


def test_failing_analysis_stops_both(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails_and_raises")
    assert first["error"] == "ArithmeticError('the analysis broke')"
    assert "the analysis broke" in second["error"]


def test_training_probe_that_fails_in_one_process(outcomes: Path) -> None:
    first, _ = pair(outcomes, "train_probe_fails")
    assert first["epochs"] == 3
    assert first["report"] is None
    assert [("could not analyze" in warning) for warning in first["warnings"]] == [True]


def test_what_one_process_notes_of_its_samples_is_in_all_reports_and_said(outcomes: Path) -> None:
    first, second = pair(outcomes, "one_leaves_some_out")
    for outcome in (first, second):
        assert "A validation batch of 8 samples gave 4 maps" in outcome["report"]["notes"]["other samples"]
    assert any("A validation batch of 8 samples gave 4 maps" in warning for warning in first["warnings"])


def test_maps_that_differ_between_processes(outcomes: Path) -> None:
    first, _ = pair(outcomes, "other_size")
    assert first["report"]["layers"] == {}
    assert all("differ between processes" in note for note in first["report"]["notes"].values())


def test_layer_that_one_process_never_reaches(outcomes: Path) -> None:
    first, _ = pair(outcomes, "other_layers")
    assert list(first["report"]["layers"]) == ["net.0"]
    assert list(first["report"]["notes"]) == ["net.2 left out"]


def test_nan_in_one_process(outcomes: Path) -> None:
    first, _ = pair(outcomes, "one_sees_nan")
    assert {verdict for layer in first["report"]["layers"].values() for verdict in layer["verdicts"]} == {"nonfinite"}


def test_images_that_change_in_one_process_are_said_there(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "one_sees_other_images")
    assert not {"error"} & {*first, *second}, (first, second)
    assert first["warnings"] == []
    assert ["validation images of the probe changed" in warning for warning in second["warnings"]] == [True]


def test_a_set_that_is_not_dealt_out_is_said(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "same_set")
    assert not {"error"} & {*first, *second}, (first, second)
    (warning,) = first["warnings"]
    assert "Every process seems to have seen the same samples" in warning
    assert second["warnings"] == []
    assert "same samples" in first["report"]["notes"]


def test_every_second_validation(outcomes: Path) -> None:
    first, _ = pair(outcomes, "every_second")
    assert [entry["analysed"] for entry in first["history"]] == [True, False, True]


def test_pruned_filters_are_the_same_in_both(outcomes: Path) -> None:
    first, second = pair(outcomes, "prunes")
    assert first["silent"] == second["silent"]
    assert any(first["silent"].values())


def test_anomaly_early_stopping_in_both(outcomes: Path) -> None:
    first, _ = pair(outcomes, "stops_itself")
    assert first["epochs"] == 3  # of 9


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_lightning_starts(strategy: str) -> None:
    _, printed = run_script("ddp.py", "started", strategy)
    report, count = printed.rsplit("report", 1)[1].split("count")
    assert float(count) > 0
    assert report.strip() == "None"
    # Spawned processes are without warnings, as the script that starts them is; forked ones have its filters.
    assert printed.count("AnomalyFilterCallback works in copies here") == (strategy == "ddp_fork")
