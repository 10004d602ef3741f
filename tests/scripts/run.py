"""Run a script of this folder in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_processes(name: str, folder: Path, *scenarios: str) -> Path:
    """Run scenarios of a script, and return the folder with the outcomes (see `forked.py`) and the output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / name), str(folder), *scenarios],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE.parents[1], HERE, HERE.parent / "helpers"]))},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def outcomes_of(folder: Path, scenario: str, world: int = 2) -> list[dict[str, Any]]:
    """Read the outcomes of all processes of a scenario; fail if one did not finish in time."""
    files = [folder / f"{scenario}-{world}-{rank}.json" for rank in range(world)]
    assert all(file.exists() for file in files), [file.read_text()[-3000:] for file in folder.glob("*.txt")]
    return [json.loads(file.read_text()) for file in files]
