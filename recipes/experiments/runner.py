"""Run an experiment: train and measure the runs without a line, and append a line for each."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from lightning_anomaly import __version__
from recipes.experiments.measures import MEASURES
from recipes.experiments.spec import Training
from recipes.experiments.store import append, read_lines, rounded


def _run(measure: str, training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    torch.set_num_threads(1)  # also in this process
    line = {"key": training.key, "cell": asdict(training)}
    return line | MEASURES[measure](training, root, weights)


def run_missing(
    measure: str,
    trainings: Sequence[Training],
    folder: Path,
    root: str | None,
    weights: str | None,
    workers: int | None,
) -> list[dict[str, Any]]:
    """Do the runs that have no line, append each line as it is finished, and return the lines of all runs in order.

    The folder `weights` stores the weights of every epoch; None stores none. Each of the `workers` has one thread; None
    takes one worker for each core, and 1 runs in this process.
    """
    path = folder / f"{measure}.jsonl"
    keys = [training.key for training in trainings]
    done = {line["key"] for line in read_lines(path)}
    missing = [training for key, training in zip(keys, trainings, strict=True) if key not in done]
    print(f"{len(keys) - len(missing)} of {len(keys)} runs are in {path.name} already")
    packages = {name: version(name) for name in ("torch", "lightning", "scikit-learn")}
    cpu = torch.backends.cpu.get_cpu_capability()  # without AVX-512 runs are in float32
    versions = {"python": platform.python_version(), **packages, "lightning-anomaly": __version__, "cpu": cpu}
    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=workers or -1, return_as="generator_unordered")
        results = pool(delayed(_run)(measure, training, root, weights) for training in missing)
        for result in tqdm(results, total=len(missing), unit="run", disable=not missing):
            append(path, {**rounded(result), "versions": versions})
    lines = {line["key"]: line for line in read_lines(path)}
    return [lines[key] for key in keys]
