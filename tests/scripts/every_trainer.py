"""A pytest plugin for a checkout of Lightning's tests that gives each Trainer our callbacks, or a neutral one instead.

    pip install pytest-rerunfailures pytest-timeout
    git clone --depth 1 --branch 2.6.5 https://github.com/Lightning-AI/pytorch-lightning ../lightning-tests
    export PYTHONPATH=$PWD:$PWD/tests/scripts:$PWD/../lightning-tests/tests && cd ../lightning-tests/tests/tests_pytorch
    python -m pytest -q -p every_trainer --fingerprints ../ours callbacks trainer
    python -m pytest -q -p every_trainer --fingerprints ../neutral --neutral callbacks trainer
    diff ../ours ../neutral

In both runs the BoringModel gets a convolution that has no effect, and after each fit a line is written to a file: the
test, and a fingerprint of weights, optimizers, flags and random states. Lines differ where our callbacks change a fit,
and where it depends on the clock or on the order of a set.
"""

import hashlib
import os
import pickle
import random
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn

from lightning_anomaly import (
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    MemorizationCallback,
    MemorizationEarlyStopping,
)


class Neutral(Callback):
    """Does nothing, but has a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"nothing": 0}


def ours() -> list[Callback]:
    stops = [AnomalyEarlyStopping(threshold=1), MemorizationEarlyStopping(threshold=1)]  # never
    return [AnomalyFilterCallback(), MemorizationCallback(), *stops]


def fingerprint(trainer: Trainer) -> str:
    """Hash everything that a callback must not change."""
    module = trainer.lightning_module
    state = [
        {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)},
        [optimizer.state_dict() for optimizer in trainer.optimizers],
        [part.training for part in module.modules()],
        (trainer.current_epoch, trainer.global_step),
        (torch.get_rng_state(), np.random.get_state(), random.getstate()),
    ]

    def numbers(value: Any) -> Any:
        """Replace tensors by bytes, because pickles of equal tensors may differ."""
        if isinstance(value, Tensor):
            return value.detach().cpu().double().numpy().tobytes()
        if isinstance(value, dict):
            return [(str(key), numbers(entry)) for key, entry in value.items()]
        return [numbers(entry) for entry in value] if isinstance(value, (list, tuple)) else repr(value)

    return " ".join(hashlib.sha256(pickle.dumps(numbers(part))).hexdigest()[:8] for part in state)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--neutral", action="store_true", help="a callback that does nothing instead of ours")
    parser.addoption("--fingerprints", type=Path, help="the file for what each fit leaves")


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def pytest_configure(config: pytest.Config) -> None:
    torch.manual_seed(0)  # for what test files draw when they are imported
    file, neutral = config.getoption("fingerprints"), config.getoption("neutral")
    make, fit, build, forward = Trainer.__init__, Trainer.fit, BoringModel.__init__, BoringModel.forward

    @wraps(make)
    def make_with_more(self: Trainer, *args: Any, callbacks: Any = None, **options: Any) -> None:
        callbacks = [callbacks] if isinstance(callbacks, Callback) else callbacks or []
        make(self, *args, callbacks=[*callbacks, *([Neutral()] if neutral else ours())], **options)

    @wraps(fit)
    def fit_and_tell(self: Trainer, *args: Any, **options: Any) -> Any:
        try:
            return fit(self, *args, **options)
        finally:
            if file is not None and self.lightning_module is not None:
                with file.open("a") as lines:
                    lines.write(f"{os.environ.get('PYTEST_CURRENT_TEST')} {fingerprint(self)}\n")

    @wraps(build)
    def build_with_convolution(self: BoringModel) -> None:
        build(self)
        with torch.random.fork_rng(devices=[]):
            self.convolution = nn.Conv1d(1, 4, 3).requires_grad_(False)

    @wraps(forward)
    def forward_past_convolution(self: BoringModel, x: Tensor) -> Tensor:
        if x.ndim == 2 and hasattr(self, "convolution"):
            self.convolution(x[:, None])
        return forward(self, x)

    Trainer.__init__, Trainer.fit = make_with_more, fit_and_tell  # type: ignore[method-assign]
    BoringModel.__init__, BoringModel.forward = build_with_convolution, forward_past_convolution  # type: ignore[method-assign]
