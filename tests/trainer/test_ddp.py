"""Two processes on the CPU (gloo). Each scenario is killed if it takes too long, and then its tests fail."""

from pathlib import Path
from typing import Any

import pytest
from run import outcomes_of, run_processes, run_script

pytestmark = pytest.mark.slow

SCENARIOS = ["whole_set", "train_probe", "own_images", "fails_and_raises", "output_stops"]

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_processes("ddp.py", tmp_path_factory.mktemp("ddp"), *SCENARIOS, timeout=1200)


def pair(folder: Path, scenario: str) -> tuple[Outcome, Outcome]:
    """What the two processes of a fit without errors saw: what is logged and decided is the same."""
    first, second = outcomes_of(folder, scenario)
    assert not {"error"} & {*first, *second}, (first, second)
    for key in ("epochs", "metrics"):
        assert first[key] == second[key], key
    return first, second


@pytest.mark.parametrize(("scenario", "samples"), [("whole_set", 95), ("train_probe", 81)])
def test_number_of_processes_does_not_matter(outcomes: Path, scenario: str, samples: int) -> None:
    (alone,) = outcomes_of(outcomes, scenario, world=1)
    first, second = pair(outcomes, scenario)
    one, two = alone["report"], first["report"]
    assert one["n_samples"] == two["n_samples"] == samples
    assert one["notes"] == two["notes"] == second["report"]["notes"]
    assert alone["warnings"] == first["warnings"]
    assert list(one["layers"]) == list(two["layers"])
    for name, layer in one["layers"].items():
        other = two["layers"][name]
        for key in ("verdicts", "n_components", "labels", "outliers", "smallest_share", "map_size"):
            assert layer[key] == other[key], (name, key)
        assert second["report"]["layers"][name]["outliers"] == layer["outliers"]
        assert not any(second["report"]["layers"][name]["points"])
        # A convolution over other batches rounds otherwise; a repeated sample counts in the share of zeros.
        assert layer["sparsity"] == pytest.approx(other["sparsity"], abs=0.01)
        assert layer["explained"] == pytest.approx(other["explained"], abs=1e-4)
        # So it may change the order of two nearly equal values, and with it a rank.
        assert layer["outlier_scores"] == pytest.approx(other["outlier_scores"], abs=0.2)
    assert list(one["views"]) == list(two["views"]) == list(second["report"]["views"]) == ["pixels", "classes"]
    for name, view in one["views"].items():
        assert view["scores"] == pytest.approx(two["views"][name]["scores"], rel=0.01, abs=0.01)


def test_processes_compare_the_same_images_of_the_trainers_own(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "own_images", world=1)
    first, _ = pair(outcomes, "own_images")
    assert first["warnings"] == alone["warnings"]
    assert "are training images too" in "".join(first["warnings"])  # as these loaders have the same ones
    metrics = [{k: v for k, v in own["metrics"].items() if "seconds" not in k} for own in (alone, first)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    assert metrics[0]["two_sample/confidence_auc"] != 0.5


def test_early_stopping_by_the_output_stops_both(outcomes: Path) -> None:
    first, second = pair(outcomes, "output_stops")
    assert first["epochs"] == 4  # of 9
    assert first["reason"] == second["reason"]
    assert "two_sample/confidence_rise = 0.239" in first["reason"]


def test_a_failing_analysis_stops_both_where_it_is_to_raise(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails_and_raises")
    assert first["error"].startswith("ZeroDivisionError")
    assert "process 0 failed: ZeroDivisionError" in second["error"]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_lightning_starts(strategy: str) -> None:
    report, count = run_script("ddp.py", "started", strategy).rsplit("report", 1)[1].split("count")
    assert float(count) > 0
    assert report.strip() == "None"
