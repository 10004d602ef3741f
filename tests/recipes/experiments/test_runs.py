"""Every experiment on a few digits gives lines in the shape of the recorded ones, and repeats no run."""

from pathlib import Path

import pytest
import torch

from recipes.experiments.__main__ import parse, run
from recipes.experiments.fitting import best_and_last, every_epoch, prepare
from recipes.experiments.spec import EXPERIMENTS
from recipes.experiments.store import RESULTS, read_lines

pytestmark = pytest.mark.slow
NAMES = {experiment.measure: name for name, experiment in reversed(EXPERIMENTS.items())}


# Recorded values that are no longer measured, or not on digits.
GONE = {"entropy_auc", "margin_auc", "energy_auc", "confidence_rise augmented", "scores", "val_losses"}
GONE |= {f"confidence_rise {size}" for size in (128, 256, 512, 2048)}


@pytest.mark.parametrize("name", NAMES.values())
def test_an_experiment_appends_lines_of_the_recorded_shape(name: str, tmp_path: Path) -> None:
    options = parse([name, "--quick", "--workers", "1", "--lines", str(tmp_path), "--weights", str(tmp_path / "kept")])
    lines, experiment = run(options), EXPERIMENTS[name]
    assert [line["cell"]["condition"] for line in lines] == list(experiment.quick)
    file = f"{experiment.measure}.jsonl"
    written = (tmp_path / "quick" / file).read_bytes()
    assert run(options) == lines
    assert (tmp_path / "quick" / file).read_bytes() == written
    condition, recorded = lines[0]["cell"]["condition"], read_lines(RESULTS / file)
    similar = next(line for line in recorded if line["cell"]["condition"] == condition)
    assert similar.keys() - GONE == lines[0].keys()
    if isinstance(similar.get("epochs"), list):
        assert set(similar["epochs"][0]) - set(lines[0]["epochs"][0]) <= GONE


def test_stored_weights_are_those_of_training(tmp_path: Path) -> None:
    training = EXPERIMENTS["h3"].quick_trainings()[0]
    images = prepare(training)
    first = best_and_last(training, images, str(tmp_path))
    again = best_and_last(training, images, None)
    assert [first[state][0] for state in first] == [again[state][0] for state in again]
    assert first["last"][0] == training.epochs
    for state, (_, network) in first.items():
        other = again[state][1].state_dict()
        assert all(torch.equal(value, other[name]) for name, value in network.state_dict().items())
    for file in tmp_path.rglob("*.pt"):
        torch.save({name: torch.zeros_like(value) for name, value in torch.load(file).items()}, file)
    for _, network in every_epoch(training, images, str(tmp_path)):
        assert not any(parameter.any() for parameter in network.parameters())
