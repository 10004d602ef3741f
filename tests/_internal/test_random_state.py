"""The random states of torch, NumPy and Python, which are isolated and restored."""

import random

import numpy as np
import pytest
import torch

from lightning_anomaly._internal.random_state import isolated_random_state


def states() -> list[object]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False)]


def test_random_numbers_depend_on_the_seed_and_do_not_touch_an_unused_gpu(monkeypatch):
    def fails(*_):
        raise AssertionError("CUDA would be initialized or seeded")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, fails)
    before, found = states(), []
    for seed in (3, 3, 2**40):
        with isolated_random_state(seed):
            found.append((torch.rand(3).tolist(), np.random.rand(), random.random()))
    np.testing.assert_equal(states(), before)
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))


def test_the_random_state_of_an_apple_gpu_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([7])]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().tolist()
    with isolated_random_state(3):
        states.append(torch.tensor([8]))  # as seeding does
    assert states[-1].tolist() == [7]
    after = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().tolist()
    np.testing.assert_equal(after, before)
