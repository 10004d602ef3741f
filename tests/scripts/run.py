"""Runs a script of this folder in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_script(
    name: str, *arguments: object, timeout: float = 60, check: bool = True, **environment: str
) -> tuple[int, str]:
    """Its exit status and what it printed; one that takes longer than `timeout` seconds is killed, and that fails."""
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 or not check, done.stdout[-4000:]
    return done.returncode, done.stdout
