"""Timing: alternatives ("sides") take turns, in this process or each in a fresh process."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

Row = dict[str, Any]


def machine() -> Row:
    """Describe the hardware and the versions that the numbers depend on."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "scikit-learn", "numba", "lightning")},
    }


def timed(work: Callable[[], Any]) -> Row:
    """Time one call: `seconds` of wall time, GPU included, and `cpu_seconds` of all cores."""
    _synchronize()
    begun = time.perf_counter(), time.process_time()
    work()
    _synchronize()
    return {"seconds": time.perf_counter() - begun[0], "cpu_seconds": time.process_time() - begun[1]}


def _synchronize() -> None:
    """Wait until the GPU is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> pd.DataFrame:
    """Return medians by side. Sides take turns, so that a slow machine slows all; the first turn is a warm-up."""
    rows = [{"side": name, "round": turn, **timed(work)} for turn in range(rounds + 1) for name, work in sides.items()]
    frame = pd.DataFrame(rows).query("round > 0")
    return frame.groupby("side", sort=False)[["seconds", "cpu_seconds"]].median()


def in_fresh_processes(sides: Mapping[str, Callable[[], Callable[[], Any]]], rounds: int) -> pd.DataFrame:
    """Return medians by side, each turn in a new process, with `peak_mib`, by how much its memory grew (Linux).

    Each side is prepared in its process and returns the work that is timed. Without rounds, all take one turn in this
    process.
    """
    rows = [] if rounds else [{"side": name, **_prepared(prepare)} for name, prepare in sides.items()]
    for _ in range(rounds):
        for name, prepare in sides.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows.append({"side": name, **pool.submit(_prepared, prepare).result()})
    return pd.DataFrame(rows).groupby("side", sort=False).median()


def _prepared(prepare: Callable[[], Callable[[], Any]]) -> Row:
    work = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    return timed(work) | {"peak_mib": _resident("VmHWM") - before}


def _resident(entry: str) -> float:
    """Read an entry of `/proc/self/status` (MiB)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) / 1024


def markdown(rows: list[Row]) -> str:
    """Format rows as a Markdown table."""
    frame = pd.DataFrame(rows)
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in frame.to_numpy()]
    lines = [list(frame.columns), ["---"] * len(frame.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
