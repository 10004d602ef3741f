"""Outliers of a data set, found by two processes on the CPU (gloo): as by one process alone, or one error in both."""

from pathlib import Path

import pytest
from run import outcomes_of, run_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenarios = "own_reference", "few_images", "fails", "differs", "broadcast"
    return run_processes("searches.py", tmp_path_factory.mktemp("searches"), *scenarios, timeout=1200)


@pytest.mark.parametrize(("scenario", "top"), [("own_reference", {200, 3, 40, 61}), ("few_images", {0})])
def test_both_get_what_one_process_alone_gets(outcomes: Path, scenario: str, top: set[int]) -> None:
    (alone,) = outcomes_of(outcomes, scenario, world=1)
    first, second = outcomes_of(outcomes, scenario)
    assert set(alone["top"]) == top
    assert len(alone["notes"]) == 1
    assert first == alone
    assert second == {**alone, "warnings": []}  # the first process warns


def test_where_one_process_fails_the_other_does_not_wait_for_it(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails")
    for case in ("reference", "images"):
        assert second[case].startswith("OverflowError")
        assert first[case].startswith("RuntimeError")
        assert "process 1 failed: OverflowError" in first[case]
    assert first["afterwards"] == second["afterwards"]
    assert {3, 40, 61} < set(first["afterwards"])


def test_all_get_what_process_0_returns_or_its_error(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "broadcast")
    for outcome in (first, second):
        assert (outcome["rank"], outcome["numbers"]) == (0, [0, 1, 2])
    assert first["failed"].startswith("IndexError")
    assert second["failed"].startswith("RuntimeError")
    assert "process 0 failed: IndexError" in second["failed"]


def test_processes_that_hold_other_images_are_told(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "differs")
    assert first["error"].startswith("ValueError")
    assert second["error"].startswith("RuntimeError")
    for outcome in (first, second):
        assert "should hold all images in every process" in outcome["error"]
        assert "Found [150, 149] images" in outcome["error"]
