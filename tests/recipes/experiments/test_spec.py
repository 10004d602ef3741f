"""The runs of the experiments, and their recorded lines."""

import pytest

from recipes.experiments.measures import MEASURES
from recipes.experiments.spec import CONDITIONS, EXPERIMENTS
from recipes.experiments.store import RESULTS, read_lines


def test_every_recorded_run_is_one_of_its_experiments() -> None:
    keys: dict[str, set[str]] = {}
    for experiment in EXPERIMENTS.values():
        keys.setdefault(experiment.measure, set()).update(run.key for run in experiment.trainings())
    for file, known in keys.items():
        assert {line["key"] for line in read_lines(RESULTS / f"{file}.jsonl")} <= known, file


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_a_measure_and_distinct_runs(name: str) -> None:
    experiment = EXPERIMENTS[name]
    keys = [training.key for training in experiment.trainings()]
    assert len(set(keys)) == len(keys) > 0
    assert experiment.measure in MEASURES
    assert set(experiment.conditions) <= set(CONDITIONS)
