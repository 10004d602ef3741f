"""Collective operations of processes that `torch.distributed` connects.

All processes call `run_together`, `gather_results` and `exchange_filters` in the same order. None waits for a process
that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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


def even_slices(count: int, world: int) -> list[slice]:
    """Divide filters or images evenly among the processes."""
    return [slice(count * rank // world, count * (rank + 1) // world) for rank in range(world)]


def sample_order(counts: Sequence[int], limit: int) -> Tensor:
    """Return the order `(N,)` in which one process would have seen the samples of all, process 0's numbered first.

    `DistributedSampler` deals samples out one by one: sample i of process r is sample `i * world + r` of all.
    """
    dealt = [torch.arange(count, device="cpu") * len(counts) + rank for rank, count in enumerate(counts)]
    return torch.cat(dealt).argsort()[:limit]


def exchange_filters(make: Callable[[], Tensor], slices: Sequence[slice], counts: Sequence[int]) -> list[Tensor]:
    """Send each process its slice of the rows `(F, n, V)` that `make` returns, and receive ours `(f, n, V)` from each.

    `F`, `V` and the type are the same everywhere, even if `n`, the number of samples in `counts`, is 0.
    """
    rank, _ = rank_and_world()
    sizes = [part.stop - part.start for part in slices]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

    def prepare() -> tuple[Tensor, Tensor, list[int], int]:
        rows = make()
        width = rows.shape[2]
        lengths = [sizes[rank] * count * width for count in counts]
        sent = torch.cat([rows[part].flatten() for part in slices]).to(device)
        return sent, sent.new_empty(sum(lengths)), lengths, width

    sent, received, lengths, width = run_together(prepare)
    dist.all_to_all_single(received, sent, lengths, [size * counts[rank] * width for size in sizes])
    parts = torch.split(received, lengths)
    return [part.view(sizes[rank], count, width) for part, count in zip(parts, counts, strict=True)]
