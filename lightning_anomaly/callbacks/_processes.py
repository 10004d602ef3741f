"""What several processes do together: whether all take part, and the maps of all in one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from lightning_anomaly.capture.maps import LayerMaps

__all__ = ["first_loader", "gather", "unpadded_length", "validates_everywhere"]


def validates_everywhere(trainer: Any) -> bool:
    """Whether all processes have validation batches; all of them call it.

    One without any runs no validation hooks, and the others must not wait for it there.
    """
    return bool(trainer.strategy.reduce_boolean_decision(sum(trainer.num_val_batches) > 0, all=True))


def first_loader(loaders: Any) -> Any:
    """The first of a Trainer's loaders, which may be one, several or none."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def unpadded_length(loaders: Any) -> int:
    """How many samples the first of a Trainer's loaders has over all processes, without those that come twice.

    `DistributedSampler` repeats the first samples at the end, so that all processes have the same number.
    """
    sampler = getattr(first_loader(loaders), "sampler", None)
    dataset: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else None
    return sys.maxsize if dataset is None else len(dataset)


def gather(maps: Mapping[str, LayerMaps], limit: int) -> Mapping[str, LayerMaps]:
    """The maps of all processes, in the order in which one process would have seen the samples.

    `DistributedSampler` deals the samples out one by one, so sample i of process r is sample `i * world + r` of all.
    A collective call: every process makes it, also one that has no maps.

    Args:
        maps: This process's maps.
        limit: Number of samples to keep.

    Returns:
        The joined maps on process 0; elsewhere the process's own.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    on_gpu = dist.get_backend() == "nccl"
    infos: list[Any] = [None] * world
    own = {n: (m.count, m.size, m.problem, m.batches[0].dtype if m.batches else None,
               tuple(m.batches[0].shape[1:]) if m.batches else None) for n, m in maps.items()}  # fmt: skip
    dist.all_gather_object(infos, own)
    joined: dict[str, LayerMaps] = {}
    for name, layer in maps.items():
        told = [info[name] for info in infos]
        problem = next((p for _, _, p, _, _ in told if p is not None), None)
        shapes = {(size, dtype, shape) for _, size, _, dtype, shape in told if shape is not None}
        if problem is None and len(shapes) > 1:
            problem = "its maps differ between processes"
        if problem is not None or not shapes:
            joined[name] = LayerMaps(problem=problem)
            continue
        ((size, dtype, shape),) = shapes
        counts = [count for count, *_ in told]
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        padded = torch.zeros(max(counts), *shape, dtype=dtype, device=device)
        zeros = torch.zeros(shape[0], dtype=torch.int64, device=device)
        if layer.zeros is not None:
            padded[: layer.count] = layer.maps.to(device)
            zeros += layer.zeros.to(device)
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        dist.all_reduce(zeros)
        if rank:
            continue
        order = sorted((i * world + r, r, i) for r, count in enumerate(counts) for i in range(count))
        rows = torch.stack([parts[r][i] for _, r, i in order[:limit]])
        # Sparsity is that of all samples seen, which may be a few more than those kept.
        share = len(rows) / sum(counts)
        joined[name] = LayerMaps([rows], len(rows), size, zeros.double() * share)
    return joined if rank == 0 else maps
