"""One thread, a deterministic hypothesis, and a small trained network."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Before NumPy is loaded: with two pytest processes, waiting threads of BLAS and OpenMP would occupy the processors.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import hypothesis
import pytest
import torch
from functional import SEED
from torch import Tensor, nn

pytest.register_assert_rewrite("properties")

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).parents[1]

if sys.platform != "linux":  # where no process is forked, a comparison in a fit warns that its loaders need a worker
    names = ["compared_images", "labels_of_a_fit", "outputs_of_a_fit", "read_never_written", "run_page"]
    collect_ignore = [f"callbacks/test_{name}.py" for name in [*names, "second_model"]]
    collect_ignore.append("trainer/test_foreign_communication.py")

compiling: list[subprocess.Popen[bytes]] = []


def pytest_configure(config: pytest.Config) -> None:
    """Compile all loops while the workers collect their tests, or each worker would compile them for itself."""
    workers = not hasattr(config, "workerinput") and config.getoption("numprocesses", None)
    if workers and not any((ROOT / "lightning_anomaly").rglob("*.nbi")):
        command = [sys.executable, "-m", "tests.scripts.every_loop"]
        compiling.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished() -> None:
    """Wait for it before any test starts."""
    for process in compiling:
        process.wait()


@pytest.fixture(autouse=True)
def lightning_speaks() -> None:
    """Reset Lightning's loggers: recipes silence them, and an early import of Lightning stops their propagation."""
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.INFO)
        logging.getLogger(package).propagate = True


@pytest.fixture
def seeded() -> Iterator[None]:
    """Make the networks and probes of a test the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


class Trained(NamedTuple):
    """A network trained on the digits, and a probe with over-exposed images at `damaged`."""

    model: nn.Module
    probe: Tensor
    damaged: list[int]


@pytest.fixture(scope="session")
def trained() -> Trained:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    targets = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(4):
            for batch in torch.randperm(1200).split(50):
                nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
                optimizer.step()
                optimizer.zero_grad()
    probe, damaged = images[1200:1600].clone(), [3, 150, 151]
    probe[damaged] *= 4
    model.requires_grad_(False).eval()
    assert (model(images[1600:]).argmax(1) == targets[1600:]).float().mean() > 0.85
    return Trained(model, probe, damaged)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch use two threads, which may sum in another order."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
