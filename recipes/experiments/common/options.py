"""Command-line options of the experiments, and the trainings that they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recipes.experiments.common.trainings import (
    MATRIX,
    Training,
    full_matrix,
    held_out_matrix,
    long_matrix,
    quick_matrix,
)

__all__ = ["add_experiment_options", "add_line_options", "chosen_trainings"]

_MATRICES = {
    "full": "all combinations",
    "held-out": "what had no part in choosing a signal",
    "long": "full data sets (hours)",
}


def add_line_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add the options that say which lines; `quick` is what the quick ones are."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--lines", default=None, help="folder of the results, default: beside the experiment")


def add_experiment_options(
    parser: argparse.ArgumentParser, matrices: Sequence[str], weights: str | None, networks: Sequence[str]
) -> None:
    """Add the options of an experiment that trains.

    Args:
        parser: Gets the options.
        matrices: Which sets of trainings there are to choose from, "full" first.
        weights: What the folder of weights is for; None for an experiment without one.
        networks: Which ones are trained by default.
    """
    add_line_options(parser, quick="a few small trainings on digits, to see it work")
    parser.add_argument("--data-root", default=None, help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--workers", type=int, default=None, help="trainings at a time, default: one for each core")
    parser.add_argument("--networks", nargs="+", default=list(networks), help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.set_defaults(matrix="full")
    if len(matrices) > 1:
        meanings = "; ".join(f"{name}: {_MATRICES[name]}" for name in matrices)
        parser.add_argument("--matrix", choices=matrices, help=f"{meanings}; default: %(default)s")
    if weights:
        parser.add_argument("--weights", default=None, help=weights)


def chosen_trainings(
    options: argparse.Namespace,
    conditions: Sequence[str] = MATRIX,
    quick: Sequence[str] = ("overfitting", "augmented"),
) -> list[Training]:
    """The trainings that the options ask for.

    Args:
        options: As parsed.
        conditions: Those of the full matrix.
        quick: Those of the quick one.
    """
    if options.quick:
        return quick_matrix(quick)
    if options.matrix == "held-out":
        return held_out_matrix()
    if options.matrix == "long":
        return long_matrix(options.networks)
    return full_matrix(options.networks, conditions=conditions, seeds=options.seeds)
