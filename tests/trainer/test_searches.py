"""Outliers of a data set, found by two processes on the CPU (gloo): as by one process alone, or one error in both."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from run import outcomes_of, run_processes

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches")
    names = ("data_module", "norms", "few_images", "half", "fails", "differs")
    return run_processes("searches.py", folder, *names, timeout=1200)


@pytest.mark.parametrize("scenario", ["data_module", "few_images", "half"])
def test_both_get_what_one_process_alone_gets_to_the_bit(outcomes: Path, scenario: str) -> None:
    (alone,) = outcomes_of(outcomes, scenario, world=1)
    first, second = outcomes_of(outcomes, scenario)
    assert "scores" in alone, alone
    assert first == alone
    assert second == {**alone, "warnings": []}  # the first process says it
    assert (alone["warnings"] != []) == (scenario == "few_images")
    assert alone["top"][:1] == [2] if scenario == "few_images" else set(alone["top"]) == {3, 40, 61}


def test_all_judge_by_the_first_process_s_norms_and_have_their_own_back(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "norms")
    assert "scores" in first, first
    assert first == second
    assert set(first["top"]) == {3, 40, 61}


def test_where_one_process_fails_the_other_does_not_wait_for_it(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails")
    cases = [case for case in first if case.startswith(("reference", "images"))]
    assert {*cases} == {case for case in second if case.startswith(("reference", "images"))}
    for case in cases:
        assert "image 100 is broken" in second[case]
        assert first[case].startswith("OtherFailed")
        assert "process 1 failed: OSError" in first[case]
    assert {case.split()[0] for case in cases} == {"reference", "images"}
    assert first["afterwards"] == second["afterwards"]
    assert set(first["afterwards"]) == {3, 40, 61}


def test_processes_that_hold_other_images_are_told(outcomes: Path) -> None:
    for outcome in outcomes_of(outcomes, "differs"):
        assert "should hold all images in every process" in outcome["error"]
        assert "Found [150, 149] images" in outcome["error"]
