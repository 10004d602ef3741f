"""Runs scenarios in forked processes, so that only their parent pays for the imports, and each within a time limit."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

LIMIT = 180  # seconds for a scenario that hangs; else it takes about two, and more on a busy machine
Outcome = dict[str, Any]
Scenario = Callable[[int, int], Outcome]


def run_forked(folder: Path, scenarios: Iterable[tuple[str, Scenario, int]]) -> None:
    """Leaves `NAME-PROCESSES-RANK.json` for each process; one that is not done in time is killed and leaves none.

    Of each scenario its name, the function that is called with the rank and the number of processes, and that number.
    """
    torch.set_num_threads(1)
    for name, scenario, world in scenarios:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = time.monotonic()
        running = set()
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                _process(folder / f"{name}-{world}-{rank}.json", scenario, rank, world, port)
            running.add(pid)
        while running and time.monotonic() - started < LIMIT:
            running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.02)
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print(f"{name} {world}: {time.monotonic() - started:.1f} s, {len(running)} killed", flush=True)


def run_named(functions: Mapping[str, Any], one_and_two: Iterable[str] = ()) -> None:
    """Runs the scenarios that the command line names, after a folder, in two processes, and some in one as well."""
    folder, *names = sys.argv[1:]
    worlds = {name: (1, 2) if name in one_and_two else (2,) for name in names}
    run_forked(Path(folder), [(name, functions[name], world) for name in names for world in worlds[name]])


def _process(file: Path, scenario: Scenario, rank: int, world: int, port: int) -> None:
    """One process of a scenario; never returns."""
    os.setpgid(0, 0)
    os.chdir(file.parent)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
                   "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if world > 1 else {}  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = scenario(rank, world)
        except Exception as error:
            outcome = {"error": repr(error), "trace": traceback.format_exc()}
    ours = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    outcome["warnings"] = [
        message
        for message in ours
        if any(word in message for word in ("nomaly", "probe", "Layer", "TwoSample", "NaN", "maps:"))
    ]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(outcome))
    partial.rename(file)
    sys.stdout.flush()
    os._exit(0)
