"""Command-line options that the experiments share, and the files of lines that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.experiments.lines import LINES

__all__ = ["add_line_options", "add_matrix_options", "lines_file"]


def add_line_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add the options that say which lines; `quick` is what the quick ones are."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--lines", default=str(LINES), help="folder of the results, default: the one in the repository")


def add_matrix_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all experiments have."""
    add_line_options(parser, quick="a few small trainings on digits, to see it work")
    parser.add_argument("--data-root", default=None, help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--workers", type=int, default=None, help="trainings at a time, default: one for each core")
    parser.add_argument("--networks", nargs="+", default=["lenet5", "simple_cnn", "alexnet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def lines_file(options: argparse.Namespace, experiment: str) -> Path:
    """The file with the lines of an experiment; quick ones have a file of their own."""
    return Path(options.lines) / f"{experiment}{'-quick' if options.quick else ''}.jsonl"
