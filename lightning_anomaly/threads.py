"""Run torch in Python's threads instead of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def torch_in_threads(work: Callable[[_Item], _Value], items: Iterable[_Item], device: torch.device) -> Iterator[_Value]:
    """Map a function that calls torch or compiled loops over items, on the CPU in one Python thread per core.

    Both release the interpreter's lock. Torch's own threads share every operation and wait for each other at its end,
    which takes most of the time of thousands of small operations. Numba's pool of threads would abort any process that
    forks later, such as a `DataLoader` with workers; these threads end with the call.

    The results come in order. All work begins with the first result.
    """
    threads, items = torch.get_num_threads(), list(items)
    if device.type != "cpu" or min(threads, len(items)) < 2:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)  # new threads get the last setting of any thread
