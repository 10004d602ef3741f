"""Run scenarios in forked processes, which share the imports of their parent, each within a time limit."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trainers import SmallNet, images

from lightning_anomaly import analyze, two_sample_test

LIMIT = 180  # seconds after which a scenario is killed; it normally takes about two
Outcome = dict[str, Any]
Scenario = Callable[[int, int], Outcome]


def main(functions: Mapping[str, Scenario], **worlds: Sequence[int]) -> None:
    """Run the scenarios on the command line, which follow a folder."""
    torch.set_num_threads(1)
    inputs, model = images(56), SmallNet()  # to load compiled code before the processes are forked
    two_sample_test(model, inputs, inputs)
    analyze(model, inputs)
    folder, *names = sys.argv[1:]
    run_scenarios(functions, folder, *names, **worlds)


def run_scenarios(functions: Mapping[str, Scenario], folder: str | Path, *names: str, **worlds: Sequence[int]) -> None:
    """Run scenarios in processes that are forked from this one; one that exceeds the limit is killed.

    Each is a function of the rank and the number of processes, which is 2 by default (see `worlds`). Each process
    writes its return value to `NAME-PROCESSES-RANK.json`.
    """
    for name, world in [(scenario, world) for scenario in names for world in worlds.get(scenario, (2,))]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = time.monotonic()
        running = set()
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                _process(Path(folder) / f"{name}-{world}-{rank}.json", functions[name], rank, world, port)
            running.add(pid)
        while running and time.monotonic() - started < LIMIT:
            running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.02)
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print(f"{name} {world}: {time.monotonic() - started:.1f} s, {len(running)} killed", flush=True)


def _process(file: Path, scenario: Scenario, rank: int, world: int, port: int) -> None:
    """Run one process of a scenario; never returns."""
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
        if any(word in message for word in ("nomaly", "probe", "Layer", "Memorization", "NaN", "maps:"))
    ]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(outcome))
    partial.rename(file)
    sys.stdout.flush()
    os._exit(0)
