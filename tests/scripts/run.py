"""Runs a script of this folder in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_processes(name: str, folder: Path, *scenarios: str) -> Path:
    """The folder with what each process of a script's scenarios left there, see `forked.py`, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / name), str(folder), *scenarios],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def outcomes_of(folder: Path, scenario: str, world: int = 2) -> list[dict[str, Any]]:
    """What each process of a scenario saw; that one left nothing, as it did not end in time, fails."""
    files = [folder / f"{scenario}-{world}-{rank}.json" for rank in range(world)]
    assert all(file.exists() for file in files), (folder / "printed.txt").read_text()[-3000:]
    return [json.loads(file.read_text()) for file in files]
