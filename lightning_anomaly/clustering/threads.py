"""How work is spread: over threads, and in operations of a size that suits the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["in_threads", "ranges", "rows_at_a_time", "torch_in_threads"]

_Found = TypeVar("_Found")


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Split `count` pieces of work among as many threads as torch uses, in ranges that even out what they cost.

    The threads are Python's own (the compiled loops release the interpreter lock) and end with each call: numba's
    OpenMP pool would abort any process that forks afterwards, as a `DataLoader` with workers does.

    Args:
        work: Does the pieces from its first argument up to its second.
        count: Number of pieces.
    """
    threads = torch.get_num_threads()
    step = max(1, min(64, count // (4 * threads)))
    if threads == 1 or count <= step:
        work(0, count)
        return
    firsts = range(0, count, step)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, firsts, (min(first + step, count) for first in firsts)))


def torch_in_threads(work: Callable[..., _Found], *arguments: Iterable[Any], like: Tensor) -> list[_Found]:
    """As `map` of a function that calls torch: on the CPU in Python's threads, each doing its operations alone.

    torch lets go of the interpreter's lock, and this is faster than torch's own threads, which share every operation
    and wait for each other at its end: with thousands of small operations, and anything else on the machine, that wait
    is most of the time.

    Args:
        work: The function.
        arguments: As for `map`.
        like: A tensor on the device where the work is done.

    Returns:
        The results, in order.
    """
    threads = torch.get_num_threads()
    if like.device.type != "cpu" or threads == 1:
        return list(map(work, *arguments))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, *arguments))
    finally:
        torch.set_num_threads(threads)  # each thread has its own setting, but those to come get the last one


def ranges(*tensors: Tensor) -> list[Sequence[Tensor]]:
    """Tensors `(F, ...)` cut into one range of filters for each thread: every range pays for its operations' starts."""
    threads = torch.get_num_threads() if tensors[0].device.type == "cpu" else 1
    step = max(1, -(-len(tensors[0]) // threads))
    return [torch.split(tensor, step) for tensor in tensors]


def rows_at_a_time(values: int, like: Tensor) -> int:
    """How many rows of so many values to put into one operation.

    Enough to make the cost of starting an operation small, and on the CPU few enough for the caches.
    """
    return max(1, (2**18 if like.device.type == "cpu" else 2**22) // max(1, values))
