"""Work spread over Python's own threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def torch_in_threads(work: Callable[[_Item], _Found], items: Iterable[_Item], device: torch.device) -> Iterator[_Found]:
    """Map a function that calls torch or compiled loops over items: on the CPU in Python's threads, each working alone.

    Both let go of the interpreter's lock. This is faster than torch's own threads, which share every operation and wait
    for each other at its end: with thousands of small operations, and anything else on the machine, that wait is most
    of the time. And the threads end with each call: numba's own pool would abort any process that forks afterwards, as
    a `DataLoader` with workers does.

    The results come in order. All work begins when the first is asked for.
    """
    threads, items = torch.get_num_threads(), list(items)
    if device.type != "cpu" or min(threads, len(items)) < 2:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)  # each thread has its own setting, but those to come get the last one
