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
    assert keys("h1", "--matrix", "long") == names(long_matrix())
    for name in ("search", "two_sample"):
        assert keys(name, "--seeds", "0") == names(full_matrix(conditions=FOLLOWED, seeds=[0]))
        assert keys(name, "--matrix", "held-out") == names(held_out_matrix())
    assert keys("frozen") == names(full_matrix(conditions=["overfitting"]))
    assert keys("h3", "--networks", "alexnet") == names(full_matrix(["alexnet"], DATA, ["overfitting", "noise30"]))
    assert len(keys("h2")) == 2 * len(full_matrix(conditions=["overfitting"]))


def test_networks_and_seeds_choose_from_any_matrix() -> None:
    long = [f"lenet5/{data}/{condition}/5" for data in DATA for condition in ("overfitting", "augmented")]
    asked = keys("output", "--matrix", "long", "--networks", "lenet5", "--seeds", "5")
    assert [key.rpartition("/")[0] for key in asked] == long
    assert keys("h1", "--matrix", "held-out", "--networks", "vgg11_bn") == names(held_out_matrix())
    on_cifar10_alone = names(full_matrix(["vgg11_bn"], ["cifar10"], seeds=[1]))
    assert keys("h1", "--networks", "vgg11_bn", "--seeds", "1") == on_cifar10_alone
    with pytest.raises(ValueError, match=r"`--networks` and `--seeds` .* held-out.*'seeds': \[3\].* Found .*\[0\]"):
        keys("h1", "--matrix", "held-out", "--seeds", "0")


def test_what_an_experiment_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["search", "--matrix", "long"],
        ["h2", "--weights", "here"],
        ["frozen", "--matrix", "held-out"],
        ["h1", "--networks", "lenet"],
    ):
        with pytest.raises(SystemExit):
            parse(arguments)
        assert arguments[1] in capsys.readouterr().err


def test_each_experiment_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert all(experiment.about.partition("?")[0] in " ".join(said.split()) for experiment in EXPERIMENTS.values())
