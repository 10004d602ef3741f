"""Run torch in Python's threads instead of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def torch_in_threads(work: Callable[[_Item], _Value], items: Iterable[_Item]) -> Iterator[_Value]:
    """Map a function that calls torch or compiled loops on the CPU over items, in Python's threads and in order.

    Torch's own threads wait for each other after every operation, which takes most of the time if operations are small.
    Numba's threads would abort any process that forks later, such as a DataLoader with workers.
    """
    threads, items = torch.get_num_threads(), list(items)
    if min(threads, len(items)) < 2:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            torch.set_num_threads(1)
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)  # new threads get the last setting of any thread
