"""Several processes analyse their shares of the filters; process 0 finds what one alone would, to the bit."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from run import outcomes_of, run_processes
from sharing import SCENARIOS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    return run_processes("sharing.py", folder, timeout=1200)


def seen(folder: Path, scenario: str) -> list[dict[str, object]]:
    found = outcomes_of(folder, scenario, SCENARIOS[scenario][0])
    for outcome in found:
        assert "error" not in outcome, outcome["trace"]
    return found


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "problem"])
def test_all_find_what_one_would(outcomes: Path, scenario: str) -> None:
    for rank, outcome in enumerate(seen(outcomes, scenario)):
        assert outcome["same"]
        assert outcome["left"] == 0
        assert {"from", "late nonfinite"} <= set(outcome["notes"]) or "nonfinite samples" in outcome["notes"]
        shown = rank == 0 and scenario != "seen only"
        assert outcome["images"] == outcome["pictures"] == shown


def test_layers_with_a_problem_in_one_process(outcomes: Path) -> None:
    first, second = seen(outcomes, "problem")
    assert first == second
    assert first["layers"] == ["flat", "narrow", "one"]
    assert first["notes"] == {
        "wide left out": "Layer 'wide' is left out of the analysis: it is out of order.",
        "late left out": "Layer 'late' is left out of the analysis: its maps differ between processes.",
    }
    assert first["images"]
