"""Every experiment on a few digits: lines in the shape of the recorded ones, and none is done twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import SMALL_RUNS

from recipes.experiments.__main__ import parse, run
from recipes.experiments.fitting import best_and_last, every_epoch, prepare
from recipes.experiments.runner import FILES
from recipes.experiments.spec import EXPERIMENTS
from recipes.experiments.store import RESULTS, read_lines

pytestmark = [*SMALL_RUNS, pytest.mark.slow]
NAMES = {experiment.measure: name for name, experiment in reversed(EXPERIMENTS.items())}


def shape(value: Any) -> Any:
    """The keys of nested dicts, those that name layers left out, and what lists hold."""
    if isinstance(value, dict):
        return {key: shape(own) for key, own in value.items() if not key.isdigit()}
    return [shape(value[0])] if isinstance(value, list) and value else None


@pytest.mark.parametrize("name", NAMES.values())
def test_an_experiment_appends_lines_of_the_recorded_shape(name: str, tmp_path: Path) -> None:
    options = parse([name, "--quick", "--workers", "1", "--lines", str(tmp_path), "--weights", str(tmp_path / "kept")])
    lines, experiment = run(options), EXPERIMENTS[name]
    assert [line["cell"]["condition"] for line in lines] == list(experiment.quick)
    file = FILES.get(experiment.measure, (experiment.measure,))[0]
    written = (tmp_path / "quick" / f"{file}.jsonl").read_bytes()
    assert run(options) == lines
    assert (tmp_path / "quick" / f"{file}.jsonl").read_bytes() == written
    recorded = read_lines(RESULTS / f"{file}.jsonl")
    of_kind = [line for line in recorded if line.get("kind") == lines[0].get("kind")]
    of_data = [line for line in of_kind if line["cell"].get("data") == lines[0]["cell"].get("data")]
    like = next(iter([*of_data, *of_kind]), lines[0])
    for part in ("epochs", "arms", "train", "all", "measures", "scores"):
        if part in like and experiment.measure != "h2_gradients":
            assert shape(lines[0][part]).__class__ == shape(like[part]).__class__
    if isinstance(like.get("epochs"), list):
        missing = set(like["epochs"][0]) - set(lines[0]["epochs"][0])
        assert missing <= {"entropy_auc", "margin_auc", "energy_auc"}  # no longer measured


def test_kept_weights_give_what_training_gives(tmp_path: Path) -> None:
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
