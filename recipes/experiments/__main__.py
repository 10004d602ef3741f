"""The experiments with controls: `python -m recipes.experiments NAME --data-root DIR`.

NAME is one of `spec.EXPERIMENTS`, or `results`, which recreates the tables (CSV files beside the lines) and the figures
of docs/results. Each run is one line of a file in recipes/experiments/results. Runs with a line are skipped, also after
an interruption. `--quick` shows in a minute, on a few digits, that an experiment works.
DIR holds the data sets, as NAME.npz or as torchvision's copy; `--download` lets torchvision fetch them. `--networks`,
`--data`, `--conditions` and `--seeds` replace an experiment's own: `h1 --data cifar100 --networks alexnet --seeds 0`.
All experiments together take days on two cores; `--weights DIR` stores the weights of every epoch (gigabytes), for
experiments on the same runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from recipes.common.data import DATA_SETS, OTHER_DATA, download
from recipes.common.options import add_data_options, one_sentence_errors
from recipes.experiments.runner import run_missing
from recipes.experiments.spec import CONDITIONS, EXPERIMENTS, NETWORKS
from recipes.experiments.store import RESULTS

_PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_AXES = {"networks": (NETWORKS, str), "data": (DATA_SETS, str), "conditions": (CONDITIONS, str), "seeds": (None, int)}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m recipes.experiments", description=__doc__, formatter_class=as_written)
    parser.add_argument("name", choices=[*EXPERIMENTS, "results"], metavar="NAME", help=", ".join(EXPERIMENTS))
    for axis, (choices, kind) in _AXES.items():
        parser.add_argument(f"--{axis}", nargs="+", choices=choices, type=kind, help="in place of the experiment's own")
    add_data_options(parser)
    parser.add_argument("--weights", help="folder for the weights, to measure the same runs again")
    parser.add_argument("--workers", type=int, help="runs at a time, default: one for each core")
    parser.add_argument("--lines", type=Path, default=RESULTS, help="folder of the lines, default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few small runs on digits, in separate files")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run an experiment, or recreate tables and figures; return the lines of the requested runs."""
    if options.name == "results":
        from recipes.experiments.figures import FIGURES
        from recipes.experiments.tables import TABLES

        for name, make in TABLES.items():
            make().to_csv(RESULTS / f"{name}.csv", index=False)
        with matplotlib.rc_context({"font.size": 8}):
            for name, draw in FIGURES.items():
                draw().savefig(_PICTURES / name, dpi=180)  # twice the width at which a page shows them
        return []
    named = {axis: value for axis in _AXES if (value := getattr(options, axis)) is not None}
    experiment = replace(EXPERIMENTS[options.name], **named)
    trainings = experiment.quick_trainings() if options.quick else experiment.trainings()
    if options.download:
        used = {training.data for training in trainings}
        pretrained = {OTHER_DATA[t.data] for t in trainings if CONDITIONS[t.condition].pretrained}
        download(used | pretrained, options.data_root)
    folder = options.lines / "quick" if options.quick else options.lines
    return run_missing(experiment.measure, trainings, folder, options.data_root, options.weights, options.workers)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
