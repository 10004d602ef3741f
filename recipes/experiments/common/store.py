"""Results as lines of JSON: a run's result is written once, finished runs are skipped, runs go on side by side.

Lists of dicts with the same keys, such as the epochs of a run, stand in the file as one dict of lists,
`{"rows": {...}}`: a third of the size. No result may have a dict with the single key "rows".
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from lightning_anomaly import __version__

__all__ = ["lines_file", "read_lines", "rounded", "run_missing"]

_FOLDERS = {"search": "h1", "frozen": "h1"}  # the others have one of their own name
Job = TypeVar("Job")


def lines_file(experiment: str, folder: str | Path | None = None, quick: bool = False) -> Path:
    """The file with the lines of an experiment, beside its scripts or in another folder; quick ones have their own."""
    beside = Path(__file__).parents[1] / _FOLDERS.get(experiment, experiment)
    return Path(folder or beside) / f"{experiment}{'-quick' if quick else ''}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in a file, oldest first; none if it does not exist.

    Of a run that was done again, the last one. A last line that an interruption cut short is left out; its run counts
    as not finished.

    Raises:
        ValueError: If another line is not JSON.
    """
    if not path.exists():
        return []
    text = path.read_text()
    whole, _, _ = text.rpartition("\n")
    results = []
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        try:
            results.append(_unpack(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of `{path.name}` should be JSON: {error}") from error
    return list({line["key"]: line for line in results}.values())


def _append(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):  # what an interruption left of a line
            path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(_pack(result), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _pack(value: Any) -> Any:
    """The value with its lists of like dicts turned into dicts of lists, also inside each other."""
    if isinstance(value, dict):
        return {key: _pack(entry) for key, entry in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if not value or not all(isinstance(row, dict) and row and row.keys() == value[0].keys() for row in value):
        return [_pack(entry) for entry in value]
    return {"rows": {key: _pack([row[key] for row in value]) for key in value[0]}}


def _unpack(value: Any) -> Any:
    """What was packed, lists for tuples."""
    if isinstance(value, list):
        return [_unpack(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    unpacked = {key: _unpack(entry) for key, entry in value.items()}
    if unpacked.keys() != {"rows"}:
        return unpacked
    columns = unpacked["rows"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    packages = {name: version(name) for name in ("torch", "lightning", "scikit-learn")}
    processor = torch.backends.cpu.get_cpu_capability()  # without AVX-512 trainings are in float32
    return {"python": platform.python_version(), **packages, "lightning-anomaly": __version__, "cpu": processor}


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats in nested plain values to so many significant digits; NaN and infinity become None."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry, digits) for entry in value]
    return value


def _with_job(run: Callable[[Job], dict[str, Any]], job: Job) -> tuple[Job, dict[str, Any]]:
    torch.set_num_threads(1)  # also where the job runs in this process
    return job, run(job)


def run_missing(
    jobs: Sequence[Job],
    key: Callable[[Job], str],
    run: Callable[[Job], dict[str, Any]],
    path: Path,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Run the jobs whose results are not in a file yet, and append each result as it comes.

    Args:
        jobs: What to run.
        key: Names a job; a line holds it as `key`.
        run: Gives a job's result as plain values; can be sent to another process.
        path: The file, one result in each line.
        workers: Processes, each with one thread; None takes one for each core, and 1 runs in this process.

    Returns:
        The results of these jobs, in their order.
    """
    done = {line["key"] for line in read_lines(path)}
    missing = [job for job in jobs if key(job) not in done]
    if missing and len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in {path.name} already")

    with_what = versions()

    def keep(job: Job, result: dict[str, Any]) -> None:
        _append(path, {"key": key(job), **rounded(result), "versions": with_what})

    with parallel_config("loky", inner_max_num_threads=1):
        results = Parallel(n_jobs=workers or -1, return_as="generator_unordered")(
            delayed(_with_job)(run, job) for job in missing
        )
        for job, result in tqdm(results, total=len(missing), unit="run", disable=not missing):
            keep(job, result)
    by_key = {line["key"]: line for line in read_lines(path)}
    return [by_key[key(job)] for job in jobs if key(job) in by_key]
