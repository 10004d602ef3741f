"""The runs of the experiments, and their recorded lines."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from recipes.experiments.__main__ import parse, run
from recipes.experiments.measures import MEASURES
from recipes.experiments.spec import CONDITIONS, EXPERIMENTS, Training
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


def test_a_run_takes_each_data_set_and_network_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def note(measure: str, trainings: Sequence[Training], *places: Any) -> list[dict[str, Any]]:
        asked.update(measure=measure, runs=[(training.network, training.data) for training in trainings])
        return []

    monkeypatch.setattr("recipes.experiments.__main__.run_missing", note)
    monkeypatch.setattr("recipes.experiments.__main__.download", lambda names, root: asked.update(fetched={*names}))
    networks, data = ["lenet5", "simple_cnn", "alexnet"], ["cifar10", "cifar100", "fashion_mnist"]
    for name in ("h1", "h2", "h3"):
        options = [name, "--networks", *networks, "--data", *data, "--seeds", "0", "--conditions", "overfitting"]
        run(parse([*options, "--download"]))
        assert asked == {"measure": name, "runs": [*product(networks, data)], "fetched": {*data}}
    run(parse(["harm_transfer", "--data", "cifar100", "--download"]))
    assert asked["fetched"] == {"cifar100", "fashion_mnist"}  # pretrained on the other
