"""One thread, hypothesis without surprises, and a small trained network whose maps the tests share."""

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

# Before NumPy is loaded: in two processes, threads of BLAS and OpenMP keep each other's processors busy by waiting.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from lightning_anomaly.clustering.engine import Engine, load_engine

pytest.register_assert_rewrite("properties")

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def lightning_speaks() -> None:
    """Recipes silence Lightning for the rest of the process, and Lightning keeps its messages from other handlers if it
    was imported before there were any; a test must not depend on either.
    """
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.INFO)
        logging.getLogger(package).propagate = True


class Trained(NamedTuple):
    """A network that has learned the digits, and a probe with over-exposed images at `damaged`."""

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
        torch.manual_seed(0)
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


@pytest.fixture(params=["torch", "numba"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Runs a test on plain torch and on the compiled loops."""
    return request.param


@pytest.fixture
def engine(engine_name: str) -> Engine:
    """The same as an object, for functions below `analyze_maps`."""
    return load_engine(engine_name)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads share torch's loops, which may sum in another order then."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
