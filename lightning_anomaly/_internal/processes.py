"""Collective operations of processes that `torch.distributed` connects.

All processes call `run_together` and `gather_results` in the same order. None waits for a process that has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; 0 and 1 without `torch.distributed`."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def gather_results(work: Callable[[], T]) -> list[T]:
    """Run `work` in every process and return all results by rank, pickled; if it fails in one process, all raise."""
    world = rank_and_world()[1]
    if world == 1:
        return [work()]
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    outcomes: list[Any] = [None] * world
    dist.all_gather_object(outcomes, (result, failure and repr(failure)))
    for rank, (_, problem) in enumerate(outcomes):
        if problem is not None:
            raise failure or RuntimeError(f"process {rank} failed: {problem}")
    return [result for result, _ in outcomes]


def run_together(work: Callable[[], T]) -> T:
    """Run `work` in every process and return this process's result; errors are raised as by `gather_results`."""
    results: list[T] = []
    gather_results(lambda: results.append(work()))  # None is sent, and not the result
    return results[0]
