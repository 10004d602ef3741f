"""What the numbers are computed with: numba's compiled loops or plain torch, and how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["compiled_for", "has_numba", "in_threads", "ranges", "rows_at_a_time", "torch_in_threads"]

_Found = TypeVar("_Found")


@cache
def has_numba() -> bool:
    """Whether numba can be imported; it comes with the extra `lightning-anomaly[fast]`."""
    return find_spec("numba") is not None


def compiled_for(points: Tensor, compiled: bool | None) -> bool:
    """Decide what runs: the compiled loops take float64 on the CPU, where numba is installed.

    Args:
        points: The points to cluster.
        compiled: True or False decide; None takes the compiled loops where they can run.

    Raises:
        ValueError: If `compiled` is True and they cannot run.
    """
    possible = has_numba() and points.device.type == "cpu" and points.dtype == torch.float64
    if compiled and not possible:
        raise ValueError(
            "Parameter `compiled` should be True only with numba installed and float64 points on the CPU. "
            f"Found {points.dtype} on {points.device}, numba {'installed' if has_numba() else 'missing'}."
        )
    return possible if compiled is None else compiled


def in_threads(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Split `count` pieces of work among threads, in ranges short enough to even out what they cost.

    The threads are Python's own (the compiled loops release the interpreter lock) and end with each call: numba's
    OpenMP pool would abort any process that forks afterwards, as a `DataLoader` with workers does.

    Args:
        work: Does the pieces from its first argument up to its second.
        count: Number of pieces.
        threads: Number of threads.
    """
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
