"""The experiments with controls: `python -m recipes.experiments NAME`, and `NAME --help` for what each of them does.

Every training or run is one line of a file beside the experiment's code. What has a line is not run again, so after an
interruption the same command goes on. `--quick` shows in a minute, on a few digits, that an experiment works. All that
the results are made of, days on two cores; DIR holds CIFAR-10 and Fashion-MNIST, as NAME.npz or as torchvision's copy,
and WEIGHTS gets gigabytes:

    python -m recipes.experiments h1 --data-root DIR --weights WEIGHTS
    python -m recipes.experiments h1 --data-root DIR --matrix held-out
    python -m recipes.experiments h1 --data-root DIR --matrix long
    python -m recipes.experiments search --data-root DIR --weights WEIGHTS
    python -m recipes.experiments two_sample --data-root DIR --weights WEIGHTS
    python -m recipes.experiments two_sample --data-root DIR --matrix held-out
    python -m recipes.experiments output --data-root DIR --seeds 0 2 3 4
    python -m recipes.experiments output --data-root DIR --matrix long
    python -m recipes.experiments stability --data-root DIR --weights WEIGHTS
    python -m recipes.experiments frozen --data-root DIR --weights WEIGHTS
    python -m recipes.experiments h2 --data-root DIR
    python -m recipes.experiments h3 --data-root DIR --weights WEIGHTS
    python -m recipes.experiments outliers --data-root DIR

What is made of the lines:

    python -m recipes.experiments stopping      prints when each rule would have stopped the trainings of h1
    python -m recipes.experiments results       makes the tables and pictures of the results anew
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from recipes.common.options import one_sentence_errors
from recipes.experiments import results
from recipes.experiments.common.options import add_experiment_options, add_line_options, chosen_trainings
from recipes.experiments.common.store import lines_file, run_missing
from recipes.experiments.common.trainings import FOLLOWED, NETWORKS, PAPERS
from recipes.experiments.h1 import frozen, search, stopping, watch
from recipes.experiments.h2 import runs
from recipes.experiments.h3 import masking
from recipes.experiments.outliers import detect
from recipes.experiments.output import follow as output
from recipes.experiments.stability import measure as stability
from recipes.experiments.two_sample import compare

__all__ = ["EXPERIMENTS", "Experiment", "parse", "run"]

_READ = "folder in which `h1 --weights` kept every epoch; trains what is not there"


@dataclass(frozen=True)
class Experiment:
    """What trains, and appends a line for each job.

    Attributes:
        about: What it is about.
        jobs: The jobs that the options ask for, each with a `key`.
        work: The result of a job, given `root`, the folder of the data, and `weights` if there is such an option.
        matrices: See `add_experiment_options`.
        weights: Likewise.
        networks: Likewise.
    """

    about: str | None
    jobs: Callable[[argparse.Namespace], Sequence[Any]]
    work: Callable[..., dict[str, Any]]
    matrices: tuple[str, ...] = ("full",)
    weights: str | None = _READ
    networks: tuple[str, ...] = PAPERS

    def run(self, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
        """Run what is missing; returns the lines of all that the options ask for."""
        folders = {"root": options.data_root} | ({"weights": options.weights} if self.weights else {})
        path = lines_file(name, options.lines, options.quick)
        work = partial(self.work, **folders)
        return run_missing(self.jobs(options), attrgetter("key"), work, path, options.workers)


_followed = partial(chosen_trainings, conditions=FOLLOWED)
_overfitting = partial(chosen_trainings, conditions=["overfitting"], quick=["overfitting"])
EXPERIMENTS = {
    "h1": Experiment(
        watch.__doc__,
        chosen_trainings,
        watch.watch,
        ("full", "held-out", "long"),
        "folder to keep the weights of every epoch in (gigabytes)",
    ),
    "search": Experiment(search.__doc__, _followed, search.follow, ("full", "held-out")),
    "two_sample": Experiment(compare.__doc__, _followed, compare.follow, ("full", "held-out")),
    "output": Experiment(output.__doc__, output.jobs, output.follow, ("full", "long"), networks=NETWORKS),
    "stability": Experiment(stability.__doc__, _followed, stability.measure),
    "frozen": Experiment(frozen.__doc__, _overfitting, frozen.experiment),
    "h2": Experiment(runs.__doc__, runs.jobs, runs.run_job, weights=None),
    "h3": Experiment(masking.__doc__, masking.trainings, masking.experiment),
    "outliers": Experiment(
        detect.__doc__,
        detect.trainings,
        detect.experiment,
        weights="folder that keeps the trained networks, to measure them again",
        networks=NETWORKS,
    ),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `run` among them does what they say."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m recipes.experiments", description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(metavar="NAME", required=True)

    def add(name: str, about: str | None, run: Callable[[argparse.Namespace], object]) -> argparse.ArgumentParser:
        brief = (about or "").partition("`")[0]
        command = commands.add_parser(name, description=about, help=brief, formatter_class=as_written)
        command.set_defaults(run=run)
        return command

    for name, experiment in EXPERIMENTS.items():
        command = add(name, experiment.about, partial(experiment.run, name))
        add_experiment_options(command, experiment.matrices, experiment.weights, experiment.networks)
    add_line_options(add("stopping", stopping.__doc__, stopping.run), quick="on the small trainings of `h1 --quick`")
    add("results", results.__doc__, results.run)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Any:
    """Do what the options say; returns what came out."""
    return options.run(options)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
