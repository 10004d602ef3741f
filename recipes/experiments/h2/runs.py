"""H2: do outlier samples drive overfitting? `python -m recipes.experiments.h2.runs`.

Two kinds of run for each network, data set and seed, one line each in `h2.jsonl`. A "measure" run trains on
images of which some are mislabelled, and measures at several epochs whether outlier samples have larger gradients and
what finds the mislabelled ones, and at the last one what finds damaged images that the network was not trained on. A
"leave_out" run trains on damaged images too, measures what finds those, and trains again without the outlier samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from recipes.common.options import one_sentence_errors
from recipes.experiments.common.options import add_matrix_options, lines_of
from recipes.experiments.common.store import run_missing
from recipes.experiments.common.trainings import DATA, Cell, make_cell, quick_matrix
from recipes.experiments.h2.leave_out import leave_out
from recipes.experiments.h2.measure import measure


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        kind: "measure" or "leave_out".
        cell: What is trained, before anything is planted or left out.
    """

    kind: str
    cell: Cell

    @property
    def key(self) -> str:
        """The name of the run."""
        return f"{self.kind}/{self.cell.key}"


def run_job(job: Job, root: str | None) -> dict[str, Any]:
    """Do one run; returns its settings and what it found."""
    found = measure(job.cell, root) if job.kind == "measure" else leave_out(job.cell, root)
    return {"kind": job.kind, "cell": asdict(job.cell), **found}


def full_matrix(networks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All runs; the slow AlexNet last, else one seed after the other, so that what is finished is whole."""
    jobs = []
    for group in (("lenet5", "simple_cnn"), ("alexnet",)):
        for seed in seeds:
            cells = [
                make_cell(network, data, "overfitting", seed)
                for network in group
                if network in networks
                for data in DATA
            ]
            jobs += [Job("measure", cell) for cell in cells]
            jobs += [Job("leave_out", cell) for cell in cells]
    return jobs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_matrix_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing of the matrix; returns its lines."""
    if options.quick:
        (cell,) = quick_matrix(["overfitting"])
        jobs = [Job(kind, cell) for kind in ("measure", "leave_out")]
    else:
        jobs = full_matrix(options.networks, options.seeds)
    work = partial(run_job, root=options.data_root)
    return run_missing(jobs, attrgetter("key"), work, lines_of(options, "h2"), options.workers)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
