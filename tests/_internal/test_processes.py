"""Several processes analyze slices of the filters, and all get the report of a single process."""

from pathlib import Path

import pytest
import sharing
import torch
from forked import run_scenarios
from run import outcomes_of
from torch.utils.data import DistributedSampler

from lightning_anomaly._internal.processes import gather_results, rank_and_world
from lightning_anomaly.filters.across_processes import sample_order


def test_a_distributed_sampler_deals_samples_in_the_assumed_order() -> None:
    dealt = [list(DistributedSampler(torch.arange(11), 3, rank, shuffle=False)) for rank in range(3)]
    assert torch.tensor(dealt).flatten()[sample_order([4, 4, 4], 12)].tolist() == [*range(11), 0]


def test_a_single_process_gets_its_own_results_and_errors() -> None:
    assert rank_and_world() == (0, 1)
    assert gather_results(lambda: "alone") == ["alone"]
    with pytest.raises(ZeroDivisionError):
        gather_results(lambda: 1 / 0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is trained in them, so that they may be forked from this process, which has imported everything."""
    folder = tmp_path_factory.mktemp("sharing")
    sharing.analyze_maps(sharing.captured(sharing.outputs(20)), sharing.SETTINGS)  # loads compiled code
    run_scenarios(vars(sharing), folder, "even", "uneven", "problem", "fails", uneven=(3,))
    return folder


@pytest.mark.parametrize(("scenario", "world"), [("even", 2), ("uneven", 3)])
def test_processes_find_what_a_single_process_finds(outcomes: Path, scenario: str, world: int) -> None:
    for outcome in outcomes_of(outcomes, scenario, world):
        assert outcome["different"] == [], outcome
        assert outcome["layers"]
        assert outcome["scores"]
        for found, expected in (outcome["notes"], outcome["n_samples"]):
            assert found == expected
        assert set(outcome["notes"][0]) == {"from", "late nonfinite"}
        assert outcome["left"] == 0
        assert outcome["images"]


def test_layers_and_scores_with_a_problem_in_one_process_are_left_out_with_a_note(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "problem")
    assert first == second
    assert first["layers"] == ["flat", "narrow", "one"]
    assert set(first["notes"]) == {"from", "wide left out", "late left out", "views"}
    assert "it is out of order" in first["notes"]["wide left out"]
    assert "differ between processes" in first["notes"]["late left out"]
    assert first["images"]


def test_all_processes_raise_if_one_fails(outcomes: Path) -> None:
    first, second = outcomes_of(outcomes, "fails")
    for stage in ("before", "sending", "analyzing"):
        assert second[stage] == "MemoryError('full')"
        assert first[stage] == "RuntimeError(\"process 1 failed: MemoryError('full')\")"
