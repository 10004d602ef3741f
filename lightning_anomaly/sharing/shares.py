"""Who of several processes analyses which filters, and where each one's samples are among those of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["filter_ranges", "sample_places", "scorers"]


def filter_ranges(filters: int, world: int) -> list[tuple[int, int]]:
    """The filters of a layer that each process analyses: from the first number up to the second.

    Each has a part of every layer: filters of one layer cost about the same, and those of a dead one nothing.
    """
    return list(pairwise(filters * rank // world for rank in range(world + 1)))


def scorers(filters: Mapping[str, int], world: int) -> dict[str, int]:
    """The process that scores the samples by each layer; all get about as many filters to do it by.

    Args:
        filters: Number of filters of each layer.
        world: Number of processes.
    """
    loads = [0] * world
    found = {}
    for name in sorted(filters, key=lambda name: -filters[name]):  # a stable order, the same in all processes
        found[name] = loads.index(min(loads))
        loads[found[name]] += filters[name]
    return found


def sample_places(counts: Sequence[int], limit: int) -> list[Tensor]:
    """Where each process's samples are among the first `limit` of all, in the order in which one would have seen them.

    `DistributedSampler` deals the samples out one by one, so sample i of process r is sample `i * world + r` of all.

    Args:
        counts: Number of samples of each process.
        limit: Number of samples to keep.

    Returns:
        The places of the first samples of each process; of those behind them none is kept.
    """
    order = sorted((i * len(counts) + rank, rank) for rank, count in enumerate(counts) for i in range(count))
    owners = torch.tensor([rank for _, rank in order[:limit]], dtype=torch.int64)
    return [(owners == rank).nonzero()[:, 0] for rank in range(len(counts))]
