"""Work that several processes share, where torch connects them, as a Trainer's strategy does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

__all__ = ["in_all", "rank_and_world"]

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Number of this process and number of all; 0 and 1 where no processes are connected."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def in_all(work: Callable[[], T]) -> list[T]:
    """What a piece of work gives in every process, in all of them, in the order of their numbers.

    A collective call: every process makes it.

    Raises:
        Exception: If the work fails; in the other processes a RuntimeError, as they would wait for it otherwise.
    """
    rank, world = rank_and_world()
    if world == 1:
        return [work()]
    done: T | None = None
    failure: Exception | None = None
    try:
        done = work()
    except Exception as error:
        failure = error
    told: list[tuple[T, str | None]] = [None] * world  # type: ignore[list-item]
    dist.all_gather_object(told, (done, None if failure is None else repr(failure)))
    if failure is not None:
        raise failure
    for other, (_, problem) in enumerate(told):
        if problem is not None:
            raise RuntimeError(f"Process {other} failed with {problem}, so process {rank} stops too.")
    return [found for found, _ in told]
