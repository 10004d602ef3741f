"""Give back what reading images changes in a user's objects: random generators and attributes."""

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

_LARGE = 1000  # entries of a container that holds data, such as the names of files, and no state
_LEAVES = (type, ModuleType, Tensor, np.ndarray, str, bytes, int, float, random.SystemRandom)
_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    np.random.Generator: (lambda one: one.bit_generator.state, lambda one, to: setattr(one.bit_generator, "state", to)),
    np.random.RandomState: (lambda one: one.get_state(legacy=False), lambda one, to: one.set_state(to)),
    random.Random: (random.Random.getstate, random.Random.setstate),
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
}


class Untouched:
    """Restores the attributes of objects, and every random generator that they can reach, also in closures.

    A deep copy of a data set would take its memory and fail for open files and locks; another process fails for data on
    a GPU. Both miss a generator that a function finds elsewhere.
    """

    def __init__(self, *owners: Any) -> None:
        roots = [*owners, *(owner.__self__ for owner in owners if isinstance(owner, MethodType))]
        reached, known = _reachable(roots), {*map(id, roots)}
        holders = (one for one in reached if id(one) in known or issubclass(type(one), Dataset))
        self._owners = [one for one in holders if hasattr(one, "__dict__")]
        self._generators = [
            (one, *access) for one in reached for kind, access in _GENERATORS.items() if issubclass(type(one), kind)
        ]
        self._states: list[Any] = []  # of the generators, where the last batch has left them

    @contextmanager
    def reading(self, seed: int, number: int) -> Iterator[None]:
        """Read a batch inside, with global random numbers from a seed; from number 1 on generators continue."""
        live = [get(one) for one, get, _ in self._generators]
        attributes = [dict(vars(owner)) for owner in self._owners]
        for (one, _, put), state in zip(self._generators, self._states if number else live, strict=True):
            put(one, state)
        try:
            with isolated_random_state((seed + number) % 2**32):
                yield
        finally:
            self._states = [get(one) for one, get, _ in self._generators]
            for (one, _, put), state in zip(self._generators, live, strict=True):
                put(one, state)
            for owner, before in zip(self._owners, attributes, strict=True):
                for name in vars(owner).keys() - before.keys():
                    del vars(owner)[name]
                vars(owner).update(before)


def _reachable(roots: Iterable[Any]) -> list[Any]:
    """Find what objects hold, and what their functions find in closures and by names of their modules."""
    seen: dict[int, Any] = {}
    queue = [*roots]
    while queue:
        one = queue.pop()
        if id(one) in seen or issubclass(type(one), _LEAVES):
            continue
        seen[id(one)] = one
        if type(one) is FunctionType:  # not `isinstance`, which asks an object for its class, and some warn then
            names = [name for name in one.__code__.co_names if name in one.__globals__]
            queue += [one.__globals__[name] for name in names]
            queue += [*(one.__closure__ or ()), *(one.__defaults__ or ())]
        elif not (issubclass(type(one), (list, tuple, dict, set)) and len(one) > _LARGE):
            # Not by `getattr`: a mock makes a new mock for each attribute that is asked for, without end.
            methods = (vars(kind).get(name) for kind in type(one).__mro__ for name in ("__getitem__", "__call__"))
            queue += [*gc.get_referents(one), *(method for method in methods if isinstance(method, FunctionType))]
    return [*seen.values()]
