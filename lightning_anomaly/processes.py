"""What processes that torch connects tell each other, as those of a Trainer's strategy.

Every process makes the same calls at the same places, whatever fails in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["OtherFailed", "agree", "exchange", "in_all", "rank_and_world"]

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Number of this process and number of all; 0 and 1 where no processes are connected."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


class OtherFailed(RuntimeError):
    """Another process failed, and says why."""


def in_all(work: Callable[[], T]) -> list[T]:
    """What a piece of work gives in every process, in all of them, in their order; for small things.

    A collective call: every process makes it.

    Raises:
        Exception: If the work fails; in the other processes an OtherFailed.
    """
    if rank_and_world()[1] == 1:
        return [work()]
    done: T | None = None
    failure: Exception | None = None
    try:
        done = work()
    except OtherFailed:  # that one tells why
        pass
    except Exception as error:
        failure = error
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (done, None if failure is None else repr(failure)))
    for rank, (_, problem) in enumerate(told):
        if problem is not None:
            raise failure or OtherFailed(f"process {rank} failed: {problem}")
    return [found for found, _ in told]


def agree(failure: Exception | None) -> None:
    """Raises in all processes if one of them has failed: its own failure there, an OtherFailed in the others."""
    well = torch.tensor(failure is None, dtype=torch.int64, device=_device())
    dist.all_reduce(well, op=dist.ReduceOp.MIN)
    if not well:  # nobody waits for one that failed
        raise failure or OtherFailed("another process failed")


def exchange(
    make: Callable[[], Sequence[Tensor]], lengths: Sequence[int], dtype: torch.dtype, failure: Exception | None = None
) -> list[Tensor]:
    """Gives every process a tensor and gets one from each, all of them flat, after all have agreed to do so.

    Args:
        make: Makes what goes to each process.
        lengths: How long what comes from each process is.
        dtype: The type of all of it.
        failure: Why this process cannot, if that is known.

    Returns:
        What came from each process, on the CPU or, with NCCL, on this process's GPU.

    Raises:
        Exception: If a process has failed or fails in `make`, in all of them; see `agree`.
    """
    try:
        if failure is None:
            parts = make()
            sent = torch.cat([part.to(_device(), dtype) for part in parts])
            received = torch.empty(sum(lengths), dtype=dtype, device=_device())
    except Exception as error:
        failure = error
    agree(failure)
    dist.all_to_all_single(received, sent, list(lengths), [len(part) for part in parts])
    return list(torch.split(received, list(lengths)))


def _device() -> torch.device:
    """Where tensors must be to travel."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
