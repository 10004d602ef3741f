"""One entry point: which trainings each experiment does for its options."""

from collections.abc import Sequence

import pytest

from recipes.experiments.__main__ import EXPERIMENTS, parse
from recipes.experiments.common.trainings import DATA, FOLLOWED, full_matrix, held_out_matrix, long_matrix


def keys(*arguments: str) -> list[str]:
    """The names of the jobs that a command line asks for."""
    return [job.key for job in EXPERIMENTS[arguments[0]].jobs(parse(arguments))]


def names(trainings: Sequence) -> list[str]:
    return [training.key for training in trainings]


def test_every_matrix_can_be_asked_for() -> None:
    assert keys("h1") == names(full_matrix())
    assert keys("h1", "--matrix", "held-out") == names(held_out_matrix())
    assert keys("h1", "--matrix", "long", "--networks", "lenet5") == names(long_matrix(["lenet5"]))
    for name in ("search", "two_sample"):
        assert keys(name, "--seeds", "0") == names(full_matrix(conditions=FOLLOWED, seeds=[0]))
        assert keys(name, "--matrix", "held-out") == names(held_out_matrix())
    assert keys("frozen") == names(full_matrix(conditions=["overfitting"]))
    assert keys("h3", "--networks", "alexnet") == names(full_matrix(["alexnet"], DATA, ["overfitting", "noise30"]))
    assert len(keys("h2")) == 2 * len(full_matrix(conditions=["overfitting"]))


def test_what_an_experiment_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["search", "--matrix", "long"], ["h2", "--weights", "here"], ["frozen", "--matrix", "held-out"]):
        with pytest.raises(SystemExit):
            parse(arguments)
        assert arguments[1] in capsys.readouterr().err


def test_each_experiment_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert all(experiment.about.partition("?")[0] in " ".join(said.split()) for experiment in EXPERIMENTS.values())
