"""What processes connected by `torch.distributed` do together.

`gather_results`, `broadcast_result` and `exchange_filters` are collective calls: all processes make them in the same
order, and none waits for one that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; 0 and 1 without `torch.distributed`."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def gather_results(work: Callable[[], T]) -> list[T]:
    """Run `work` in every process and return the results of all, by rank; they are pickled.

    If it fails in one process, all raise: that one its own error, the others a RuntimeError.
    """
    if rank_and_world()[1] == 1:
        return [work()]
    result, failure = _attempt(work)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (result, failure and repr(failure)))
    for rank, (_, problem) in enumerate(gathered):
        if problem is not None:
            raise failure or RuntimeError(f"process {rank} failed: {problem}")
    return [result for result, _ in gathered]


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def broadcast_result(work: Callable[[], T]) -> T:
    """Run `work` in process 0 and return its result in every process; errors are raised as in `gather_results`."""
    rank, world = rank_and_world()
    if world == 1:
        return work()
    result, failure = _attempt(work) if rank == 0 else (None, None)
    outcome: list[Any] = [result, failure and repr(failure)]
    dist.broadcast_object_list(outcome, src=0)
    result, problem = outcome
    if problem is not None:
        raise failure or RuntimeError(f"process 0 failed: {problem}")
    return cast(T, result)


def even_slices(count: int, world: int) -> list[slice]:
    """Divide filters or images evenly among the processes."""
    return [slice(count * rank // world, count * (rank + 1) // world) for rank in range(world)]


def sample_order(counts: Sequence[int], limit: int) -> Tensor:
    """Return the order in which one process would have seen the first samples of all, `limit` at most.

    `DistributedSampler` deals samples out one by one, so sample i of process r is sample `i * world + r` of all. The
    indices `(N,)` are into the samples of process 0, which has `counts[0]`, those of process 1 and so on.
    """
    dealt = [torch.arange(count, device="cpu") * len(counts) + rank for rank, count in enumerate(counts)]
    return torch.cat(dealt).argsort()[:limit]


def exchange_filters(make: Callable[[], Tensor], slices: Sequence[slice], counts: Sequence[int]) -> list[Tensor]:
    """Send each process its slice of the filters' rows, and receive this process's slice of the rows of all.

    `make` returns the rows `(F, n, V)` of this process's samples, of which each process has `counts`; of no samples too
    they have the same type and width. What comes from each process `(f, n, V)` is on the CPU or, with NCCL, on this
    process's GPU. Errors are raised as in `gather_results`.
    """
    rank, _ = rank_and_world()
    sizes = [part.stop - part.start for part in slices]
    failure: Exception | None = None
    try:
        rows = make()
        width = rows.shape[2]
        lengths = [sizes[rank] * count * width for count in counts]
        sent = torch.cat([rows[part].flatten() for part in slices]).to(_device())
        received = sent.new_empty(sum(lengths))
    except Exception as error:
        failure = error
    succeeded = torch.tensor(failure is None, dtype=torch.int64, device=_device())
    dist.all_reduce(succeeded, op=dist.ReduceOp.MIN)
    if not succeeded:
        raise failure or RuntimeError("another process failed")
    dist.all_to_all_single(received, sent, lengths, [size * counts[rank] * width for size in sizes])
    parts = torch.split(received, lengths)
    return [part.view(sizes[rank], count, width) for part, count in zip(parts, counts, strict=True)]


def _device() -> torch.device:
    """Name the device from which the backend sends tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
