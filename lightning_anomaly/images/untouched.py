"""Restore what reading images changes in a user's objects: random generators and attributes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_anomaly.images.random_state import isolated_random_state

_LARGE = 1000  # entries; larger containers hold data such as file names, and no generators
_LEAVES = (type, ModuleType, Tensor, np.ndarray, str, bytes, int, float, random.SystemRandom)
_STATES: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {  # how to get and how to set them
    np.random.Generator: (lambda rng: rng.bit_generator.state, lambda rng, to: setattr(rng.bit_generator, "state", to)),
    np.random.RandomState: (lambda rng: rng.get_state(legacy=False), lambda rng, to: rng.set_state(to)),
    random.Random: (random.Random.getstate, random.Random.setstate),
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
}


class Untouched:
    """Restores the attributes of objects, and every random generator that they can reach, also in closures.

    A deep copy of a data set would double its memory and fail for open files and locks; another process would fail for
    data on a GPU. Both would miss generators that a function finds in its module.
    """

    def __init__(self, *owners: Any) -> None:
        roots = [*owners, *(owner.__self__ for owner in owners if isinstance(owner, MethodType))]
        root_ids, reachable = {*map(id, roots)}, _reachable(roots)
        holders = (value for value in reachable if id(value) in root_ids or issubclass(type(value), Dataset))
        self._owners = [holder for holder in holders if hasattr(holder, "__dict__")]
        self._generators = [
            (value, *access) for value in reachable for kind, access in _STATES.items() if issubclass(type(value), kind)
        ]
        self._states: list[Any] = []  # of the generators after the last batch

    @contextmanager
    def reading(self, seed: int, number: int) -> Iterator[None]:
        """Read batch `number` inside, then restore all objects; generators continue from the batch before it.

        Global random numbers start from the seed and the number.
        """
        states = [get_state(generator) for generator, get_state, _ in self._generators]
        attributes = [dict(vars(owner)) for owner in self._owners]
        for (generator, _, set_state), state in zip(self._generators, self._states if number else states, strict=True):
            set_state(generator, state)
        try:
            with isolated_random_state((seed + number) % 2**32):
                yield
        finally:
            self._states = [get_state(generator) for generator, get_state, _ in self._generators]
            for (generator, _, set_state), state in zip(self._generators, states, strict=True):
                set_state(generator, state)
            for owner, before in zip(self._owners, attributes, strict=True):
                for name in vars(owner).keys() - before.keys():
                    del vars(owner)[name]
                vars(owner).update(before)


def _reachable(roots: Iterable[Any]) -> list[Any]:
    """Find all objects that the roots hold, and that their functions use from closures and modules."""
    seen: dict[int, Any] = {}
    queue = [*roots]
    while queue:
        value = queue.pop()
        if id(value) in seen or issubclass(type(value), _LEAVES):
            continue
        seen[id(value)] = value
        if type(value) is FunctionType:  # `isinstance` would read `__class__`, and some objects warn then
            queue += [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
            queue += [*(value.__closure__ or ()), *(value.__defaults__ or ())]
        elif not (issubclass(type(value), (list, tuple, dict, set)) and len(value) > _LARGE):
            # `getattr` would let a mock make a new mock for each attribute, without end.
            methods = (vars(kind).get(name) for kind in type(value).__mro__ for name in ("__getitem__", "__call__"))
            queue += [*gc.get_referents(value), *(method for method in methods if isinstance(method, FunctionType))]
    return [*seen.values()]
