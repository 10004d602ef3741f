"""The runs of the experiments, and the lines that are there."""

import pytest

from recipes.experiments.measures import MEASURES
from recipes.experiments.runner import key_of
from recipes.experiments.spec import CONDITIONS, EXPERIMENTS
from recipes.experiments.store import RESULTS, read_lines


def test_every_recorded_run_is_one_of_its_experiments() -> None:
    keys: dict[str, set[str]] = {}
    for experiment in EXPERIMENTS.values():
        file = experiment.measure.partition("/")[0]
        own = {key_of(experiment.measure, training) for training in experiment.trainings()}
        keys.setdefault(file, set()).update(own)
    for file, own in keys.items():
        recorded = {line["key"]: line["cell"] for line in read_lines(RESULTS / f"{file}.jsonl")}
        assert recorded.keys() <= own, file


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_a_measure_and_no_run_twice(name: str) -> None:
    experiment = EXPERIMENTS[name]
    keys = [training.key for training in experiment.trainings()]
    assert len(set(keys)) == len(keys) > 0
    assert experiment.measure in MEASURES
    assert set(experiment.conditions) <= set(CONDITIONS)
