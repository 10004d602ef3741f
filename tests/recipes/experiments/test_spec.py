"""The runs of the experiments, and the lines that are there."""

from dataclasses import replace

import pytest

from recipes.experiments.__main__ import parse
from recipes.experiments.measures import MEASURES
from recipes.experiments.runner import FILES, key_of
from recipes.experiments.spec import CONDITIONS, EXPERIMENTS, OVERFITTING
from recipes.experiments.store import RESULTS, read_lines


def test_every_recorded_run_is_one_of_its_experiments() -> None:
    keys: dict[str, set[str]] = {}
    for experiment in EXPERIMENTS.values():
        file = FILES.get(experiment.measure, (experiment.measure,))[0]
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


def test_the_papers_question_has_healthy_controls_and_takes_other_data() -> None:
    experiment = EXPERIMENTS["h1"]
    assert not set(experiment.conditions) <= set(OVERFITTING)
    other = replace(experiment, data=["cifar100"], seeds=[7]).trainings()
    assert {(training.data, training.seed) for training in other} == {("cifar100", 7)}
    assert {training.network for training in other} == {"alexnet", "lenet5", "simple_cnn"}
    assert parse(["h1", "--data", "cifar100"]).data == ["cifar100"]


def test_long_runs_take_all_images_but_the_validation_ones() -> None:
    sizes = {training.data: training.train_size for training in EXPERIMENTS["h1_long"].trainings()}
    assert sizes == {"cifar10": 48_976, "fashion_mnist": 58_976}
