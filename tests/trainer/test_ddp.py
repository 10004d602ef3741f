"""Fits in two processes on the CPU (gloo). A scenario that takes too long is killed and its tests fail."""

from pathlib import Path
from typing import Any

import pytest
from run import outcomes_of, run_processes

pytestmark = pytest.mark.slow

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_processes("ddp.py", tmp_path_factory.mktemp("ddp"), "same_images", "output_stops")


def pair(folder: Path, scenario: str) -> tuple[Outcome, Outcome]:
    """Read the outcomes of the two processes of a fit; they must have the same epochs and metrics, and no error."""
    first, second = outcomes_of(folder, scenario)
    assert not {"error"} & {*first, *second}, (first, second)
    for key in ("epochs", "metrics"):
        assert first[key] == second[key], key
    return first, second


def test_reports_do_not_depend_on_the_number_of_processes(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "same_images", world=1)
    single, first, second = (outcome["report"] for outcome in (alone, *pair(outcomes, "same_images")))
    assert single["n_samples"] == first["n_samples"] == 95
    assert single["notes"] == first["notes"] == second["notes"]
    assert list(single["layers"]) == list(first["layers"])
    for name, expected in single["layers"].items():
        layer = first["layers"][name]
        for key in ("verdicts", "n_components", "clusters", "outliers", "nonfinite", "smallest_share", "map_size"):
            assert layer[key] == expected[key], (name, key)
        assert second["layers"][name] == layer
        # A convolution over other batches rounds differently; a repeated sample counts in the share of zeros.
        assert layer["sparsity"] == pytest.approx(expected["sparsity"], abs=0.01)
        assert layer["explained"] == pytest.approx(expected["explained"], abs=1e-4)
    assert {*single["columns"]} - {"class"} == {*first["columns"]} == {*second["columns"]}  # labels are of one process
    for name in ("look_score", "content_score"):
        assert single["columns"][name] == pytest.approx(first["columns"][name], rel=0.01, abs=0.01)


def test_processes_compare_the_same_images_of_the_trainers_data(outcomes: Path) -> None:
    (alone,) = outcomes_of(outcomes, "same_images", world=1)
    first, _ = pair(outcomes, "same_images")
    assert first["warnings"] == alone["warnings"]
    assert "are training images too" in "".join(first["warnings"])  # because both loaders have the same images
    one, two = (
        {key: value for key, value in outcome["metrics"].items() if "memorization" in key and "seconds" not in key}
        for outcome in (alone, first)
    )
    assert one == pytest.approx(two, abs=1e-4)
    assert one["memorization/auc"] != 0.5


def test_early_stopping_by_the_output_stops_both_processes(outcomes: Path) -> None:
    first, second = pair(outcomes, "output_stops")
    assert first["epochs"] == 4  # of 9
    assert first["reason"] == second["reason"]
    assert "memorization/rise = 0.239" in first["reason"]
