"""What processes connected by `torch.distributed` do together.

These are collective calls: every process makes them at the same places, and none waits for one that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["OtherFailed", "exchange", "gather_results", "raise_if_any_failed", "rank_and_world"]

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; 0 and 1 without `torch.distributed`."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


class OtherFailed(RuntimeError):
    """Another process has failed."""


def gather_results(work: Callable[[], T]) -> list[T]:
    """Run `work` in every process and return the results of all, by rank; they are pickled, so keep them small.

    Raises:
        Exception: In all processes if `work` fails in one: its own error where it failed, OtherFailed elsewhere.
    """
    if rank_and_world()[1] == 1:
        return [work()]
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except OtherFailed:  # that one reports the reason
        pass
    except Exception as error:
        failure = error
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (result, None if failure is None else repr(failure)))
    for rank, (_, problem) in enumerate(gathered):
        if problem is not None:
            raise failure or OtherFailed(f"process {rank} failed: {problem}")
    return [result for result, _ in gathered]


def raise_if_any_failed(failure: Exception | None) -> None:
    """Raise in all processes if one has failed: its own error where it failed, OtherFailed elsewhere."""
    succeeded = torch.tensor(failure is None, dtype=torch.int64, device=_device())
    dist.all_reduce(succeeded, op=dist.ReduceOp.MIN)
    if not succeeded:
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
        Exception: If a process has failed or fails in `make`, in all of them; see `raise_if_any_failed`.
    """
    try:
        if failure is None:
            parts = make()
            sent = torch.cat([part.to(_device(), dtype) for part in parts])
            received = torch.empty(sum(lengths), dtype=dtype, device=_device())
    except Exception as error:
        failure = error
    raise_if_any_failed(failure)
    dist.all_to_all_single(received, sent, list(lengths), [len(part) for part in parts])
    return list(torch.split(received, list(lengths)))


def _device() -> torch.device:
    """Where tensors must be to travel."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
