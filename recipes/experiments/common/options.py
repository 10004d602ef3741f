"""Command-line options that the experiments share, and the files of lines that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.experiments.common.store import lines_file

__all__ = ["add_line_options", "add_matrix_options", "lines_of"]


def add_line_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add the options that say which lines; `quick` is what the quick ones are."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--lines", default=None, help="folder of the results, default: beside the scripts")


def add_matrix_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all experiments have."""
    add_line_options(parser, quick="a few small trainings on digits, to see it work")
    parser.add_argument("--data-root", default=None, help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--workers", type=int, default=None, help="trainings at a time, default: one for each core")
    parser.add_argument("--networks", nargs="+", default=["lenet5", "simple_cnn", "alexnet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def lines_of(options: argparse.Namespace, experiment: str) -> Path:
    """The file with the lines of an experiment that the options ask for."""
    return lines_file(experiment, options.lines, options.quick)
