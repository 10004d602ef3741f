"""Two processes that load a detector score as one does, with Lightning's `Trainer.predict` and with Ray Data.

Ray is the extra `ray`, which `.ci/run` installs; without it its test is skipped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_anomaly import OutlierDetector

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run_recipe(name: str, folder: Path) -> Tensor:
    """Run a recipe in a folder, and return the scores that one process gives with the detector that it saved."""
    shutil.copy(ROOT / "recipes" / f"{name}.py", folder)
    settings = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    command, environment = [sys.executable, f"{name}.py"], {**os.environ, **settings}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    images = torch.tensor(load_digits().images[900:, None] / 16).float()
    return OutlierDetector.load(folder / "detector.pt", network).score(images)


def test_two_processes_of_a_trainer_score_as_one_does(tmp_path: Path) -> None:
    """They have eight and seven batches; `score` once waited for the other process."""
    expected = run_recipe("predict", tmp_path)
    parts = [torch.load(tmp_path / f"scores_{rank}.pt") for rank in range(2)]
    assert sorted(len(part["positions"]) for part in parts) == [448, 449]
    order = torch.cat([part["positions"] for part in parts]).argsort()
    torch.testing.assert_close(torch.cat([part["scores"] for part in parts])[order], expected, rtol=1e-6, atol=1e-6)


def test_two_workers_of_ray_score_as_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the extra `ray` brings it")
    expected = run_recipe("ray_data", tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "scores.pt"), expected, rtol=1e-6, atol=1e-6)
