"""Two processes on the CPU (gloo). Each scenario is killed if it takes too long, and then its tests fail."""

from pathlib import Path
from typing import Any

import pytest
from run import outcomes_of, run_processes

pytestmark = pytest.mark.slow

SCENARIOS = ["same_images", "output_stops", "fails_and_raises", "searches"]

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_processes("ddp.py", tmp_path_factory.mktemp("ddp"), *SCENARIOS)


def pair(folder: Path, scenario: str) -> tuple[Outcome, Outcome]:
    """What the two processes of a fit without errors saw: what is logged and decided is the same."""
    first, second = outcomes_of(folder, scenario)
    assert not {"error"} & {*first, *second}, (first, second)
    for key in ("epochs", "metrics"):
        assert first[key] == second[key], key
    return first, second


@pytest.mark.parametrize(("probe", "samples"), [("val", 95), ("train", 81)])
def test_number_of_processes_does_not_matter(outcomes: Path, probe: str, samples: int) -> None:
    (alone,) = outcomes_of(outcomes, "same_images", world=1)
    first, second = pair(outcomes, "same_images")
    one, two, other_process = (outcome[probe] for outcome in (alone, first, second))
    assert one["n_samples"] == two["n_samples"] == samples
    assert one["notes"] == two["notes"] == other_process["notes"]
    assert list(one["layers"]) == list(two["layers"])
    for name, layer in one["layers"].items():
        other = two["layers"][name]
        for key in ("verdicts", "n_components", "labels", "outliers", "smallest_share", "map_size"):
            assert layer[key] == other[key], (name, key)
        assert other_process["layers"][name]["outliers"] == layer["outliers"]
        assert not any(other_process["layers"][name]["points"])
        # A convolution over other batches rounds otherwise; a repeated sample counts in the share of zeros.
        assert layer["sparsity"] == pytest.approx(other["sparsity"], abs=0.01)
        assert layer["explained"] == pytest.approx(other["explained"], abs=1e-4)
        # So it may change the order of two nearly equal values, and with it a rank.
        assert layer["outlier_scores"] == pytest.approx(other["outlier_scores"], abs=0.2)
    assert list(one["views"]) == list(two["views"]) == list(other_process["views"]) == ["pixels", "features", "logits"]
    for name, view in one["views"].items():
        assert view["scores"] == pytest.approx(two["views"][name]["scores"], rel=0.01, abs=0.01)


def test_processes_compare_the_same_images_of_the_trainers_own(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "same_images", world=1)
    first, _ = pair(outcomes, "same_images")
    assert first["warnings"] == alone["warnings"]
    assert "are training images too" in "".join(first["warnings"])  # as these loaders have the same ones
    one, two = (
        {key: value for key, value in own["metrics"].items() if "two_sample" in key and "seconds" not in key}
        for own in (alone, first)
    )
    assert one == pytest.approx(two, abs=1e-4)
    assert one["two_sample/confidence_auc"] != 0.5


def test_early_stopping_by_the_output_stops_both(outcomes: Path) -> None:
    first, second = pair(outcomes, "output_stops")
    assert first["epochs"] == 4  # of 9
    assert first["reason"] == second["reason"]
    assert "two_sample/confidence_rise = 0.239" in first["reason"]


def test_a_failing_analysis_stops_both_where_it_is_to_raise(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails_and_raises")
    assert first["error"].startswith("ZeroDivisionError")
    assert "process 0 failed: ZeroDivisionError" in second["error"]


def test_outliers_are_those_that_one_process_alone_finds(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "searches", world=1)
    first, second = outcomes_of(outcomes, "searches")
    assert {3, 40, 61} < set(alone["many"]["top"])
    assert len(alone["one"]["notes"]) == 1
    for case in ("many", "one"):
        assert first[case] == second[case] == alone[case]
    assert (first["warnings"], second["warnings"]) == (alone["warnings"], [])  # the first process warns
    assert first["fewer"].startswith("ValueError")
    assert second["fewer"].startswith("RuntimeError")
    assert all("Found [150, 149] images" in outcome["fewer"] for outcome in (first, second))
