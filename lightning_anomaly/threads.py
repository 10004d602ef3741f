"""Work spread over Python's own threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

_Found = TypeVar("_Found")


def torch_in_threads(work: Callable[..., _Found], *arguments: Iterable[Any], like: Tensor) -> Iterator[_Found]:
    """Map a function that calls torch or compiled loops, on the CPU in Python's threads, each working alone.

    Both let go of the interpreter's lock. This is faster than torch's own threads, which share every operation and wait
    for each other at its end: with thousands of small operations, and anything else on the machine, that wait is most
    of the time. And the threads end with each call: numba's own pool would abort any process that forks afterwards, as
    a `DataLoader` with workers does.

    Args:
        work: The function.
        arguments: As for `map`.
        like: A tensor on the device where the work is done.

    Yields:
        The results, in order. All work begins when the first is asked for.
    """
    threads, calls = torch.get_num_threads(), list(zip(*arguments, strict=True))
    if like.device.type != "cpu" or min(threads, len(calls)) < 2:
        yield from (work(*own) for own in calls)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, *zip(*calls, strict=True))
    finally:
        torch.set_num_threads(threads)  # each thread has its own setting, but those to come get the last one
