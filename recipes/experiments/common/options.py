"""Command-line options of the experiments, and the trainings that they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from recipes.experiments.common.trainings import (
    MATRIX,
    NETWORKS,
    PAPERS,
    Training,
    full_matrix,
    held_out_matrix,
    long_matrix,
    quick_matrix,
)

__all__ = ["add_experiment_options", "add_line_options", "asked", "chosen_trainings"]

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
        networks: Which ones the first set trains by default, as `asked` knows.
    """
    add_line_options(parser, quick="a few small trainings on digits, to see it work")
    parser.add_argument("--data-root", default=None, help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--workers", type=int, default=None, help="trainings at a time, default: one for each core")
    others = ", or all of another matrix" if len(matrices) > 1 else ""
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help=f"default: {' '.join(networks)}{others}")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"default: 0 1 2{others}")
    parser.set_defaults(matrix="full")
    if len(matrices) > 1:
        meanings = "; ".join(f"{name}: {_MATRICES[name]}" for name in matrices)
        parser.add_argument("--matrix", choices=matrices, help=f"{meanings}; default: %(default)s")
    if weights:
        parser.add_argument("--weights", default=None, help=weights)


def asked(options: argparse.Namespace) -> dict[str, list[Any]]:
    """The `networks` and the `seeds` that the options name; empty if they name none."""
    return {name: value for name in ("networks", "seeds") if (value := getattr(options, name)) is not None}


def chosen_trainings(
    options: argparse.Namespace,
    conditions: Sequence[str] = MATRIX,
    quick: Sequence[str] = ("overfitting", "augmented"),
    networks: Sequence[str] = PAPERS,
) -> list[Training]:
    """The trainings that the options ask for.

    Args:
        options: As parsed.
        conditions: Those of the full matrix.
        quick: Those of the quick one.
        networks: Those of the full matrix, unless the options name some.

    Raises:
        ValueError: If the matrix has none of the networks and seeds that the options name.
    """
    if options.quick:
        return quick_matrix(quick)
    named = asked(options)
    if options.matrix == "full":
        return full_matrix(**{"networks": networks, **named}, conditions=conditions)
    matrix = held_out_matrix() if options.matrix == "held-out" else long_matrix()
    found = [
        training
        for training in matrix
        if training.network in named.get("networks", [training.network])
        and training.seed in named.get("seeds", [training.seed])
    ]
    if not found:
        had = {name: sorted({getattr(training, name[:-1]) for training in matrix}) for name in named}
        raise ValueError(
            f"Options `--networks` and `--seeds` should name some of the matrix {options.matrix}, which has {had}. "
            f"Found {named}."
        )
    return found
