"""H2: do outlier samples drive overfitting? `python -m recipes.experiments h2 --data-root DIR`.

Two kinds of run for each network, data set and seed, one line each in `h2.jsonl`. A "measure" run trains on
images of which some are mislabelled, and measures at several epochs whether outlier samples have larger gradients and
what finds the mislabelled ones, and at the last one what finds damaged images that the network was not trained on. A
"leave_out" run trains on damaged images too, measures what finds those, and trains again without the outlier samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recipes.experiments.common.options import asked
from recipes.experiments.common.trainings import DATA, PAPERS, Training, make_training, quick_matrix
from recipes.experiments.h2.leave_out import leave_out
from recipes.experiments.h2.measure import measure

__all__ = ["Job", "full_matrix", "jobs", "run_job"]


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        kind: "measure" or "leave_out".
        training: What is trained, before anything is planted or left out.
    """

    kind: str
    training: Training

    @property
    def key(self) -> str:
        """The name of the run."""
        return f"{self.kind}/{self.training.key}"


def run_job(job: Job, root: str | None) -> dict[str, Any]:
    """Do one run; returns its settings and what it found."""
    found = measure(job.training, root) if job.kind == "measure" else leave_out(job.training, root)
    return {"kind": job.kind, "cell": asdict(job.training), **found}


def jobs(options: argparse.Namespace) -> list[Job]:
    """The runs that the options ask for."""
    if not options.quick:
        return full_matrix(**asked(options))
    (training,) = quick_matrix(["overfitting"])
    return [Job(kind, training) for kind in ("measure", "leave_out")]


def full_matrix(networks: Sequence[str] = PAPERS, seeds: Sequence[int] = (0, 1, 2)) -> list[Job]:
    """All runs; the slow AlexNet last, else one seed after the other, so that what is finished is whole."""
    found = []
    for group in (("lenet5", "simple_cnn"), ("alexnet",)):
        for seed in seeds:
            trainings = [
                make_training(network, data, "overfitting", seed)
                for network in group
                if network in networks
                for data in DATA
            ]
            found += [Job("measure", training) for training in trainings]
            found += [Job("leave_out", training) for training in trainings]
    return found
