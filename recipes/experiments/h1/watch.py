"""H1: does the number of anomaly filters rise with overfitting? `python -m recipes.experiments.h1.watch`.

Trains every cell and writes what was measured after each epoch to `h1.jsonl`; `stopping` reads the same lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from recipes.common.options import one_sentence_errors
from recipes.experiments.common.fitting import watch
from recipes.experiments.common.options import add_matrix_options, lines_of
from recipes.experiments.common.store import run_missing
from recipes.experiments.common.trainings import full_matrix, held_out_matrix, long_matrix, quick_matrix


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_matrix_options(parser)
    parser.add_argument(
        "--matrix",
        choices=["full", "held-out", "long"],
        default="full",
        help="held-out: what had no part in choosing a signal; long: full data sets (hours); default: %(default)s",
    )
    parser.add_argument("--weights", default=None, help="folder to keep the weights of every epoch in (gigabytes)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of the matrix; returns its lines."""
    if options.quick:
        cells = quick_matrix()
    elif options.matrix == "full":
        cells = full_matrix(options.networks, seeds=options.seeds)
    else:
        cells = held_out_matrix() if options.matrix == "held-out" else long_matrix(options.networks)
    work = partial(watch, root=options.data_root, weights=options.weights)
    return run_missing(cells, attrgetter("key"), work, lines_of(options, "h1"), options.workers)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
