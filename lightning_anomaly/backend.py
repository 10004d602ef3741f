"""What the numbers are computed with: numba's compiled loops or plain torch, and how many threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["compiled_for", "has_numba", "in_threads", "rows_at_a_time"]


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


def rows_at_a_time(values: int, like: Tensor) -> int:
    """How many rows of so many values to put into one operation.

    Enough to make the cost of starting an operation small, and on the CPU few enough for the caches.
    """
    return max(1, (2**18 if like.device.type == "cpu" else 2**22) // max(1, values))
