"""The global random states of torch, NumPy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python at the end."""
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    # Reading the state of an unused GPU would initialize CUDA, and processes could no longer fork.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Draw from a seed inside; restore the random states of torch, NumPy and Python at the end."""
    with kept_random_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed CUDA when it is initialized
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
        yield
