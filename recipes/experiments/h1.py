"""H1: does the number of anomaly filters rise with overfitting? `python -m recipes.experiments.h1 --data-root DIR`.

Trains every cell and writes what was measured after each epoch to `lines/h1.jsonl`; `stopping` reads the same lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recipes.experiments.cells import Cell, full_matrix, quick_matrix
from recipes.experiments.lines import LINES, run_missing
from recipes.experiments.training import watch
from recipes.options import one_sentence_errors


def add_matrix_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all experiments have."""
    parser.add_argument("--quick", action="store_true", help="a few small trainings on digits, to see it work")
    parser.add_argument("--data-root", default=None, help="folder that holds NAME.npz or torchvision's copy (./data)")
    parser.add_argument("--lines", default=str(LINES), help="folder of the results, default: the one in the repository")
    parser.add_argument("--workers", type=int, default=None, help="trainings at a time, default: one for each core")
    parser.add_argument("--networks", nargs="+", default=["lenet5", "simple_cnn", "alexnet"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_matrix_options(parser)
    parser.add_argument("--weights", default=None, help="folder to keep the weights of every epoch in (gigabytes)")
    return parser.parse_args(arguments)


def key_of(cell: Cell) -> str:
    """The name of a run."""
    return cell.key


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of the matrix; returns its lines."""
    cells = quick_matrix() if options.quick else full_matrix(options.networks, seeds=options.seeds)
    name = "h1-quick.jsonl" if options.quick else "h1.jsonl"
    work = partial(watch, root=options.data_root, weights=options.weights)
    return run_missing(cells, key_of, work, Path(options.lines) / name, options.workers)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
