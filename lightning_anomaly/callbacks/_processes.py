"""What several processes do together: whether all take part, and the maps of all in one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_anomaly.capture.maps import STATISTICS, LayerMaps

__all__ = [
    "decided_by_first",
    "first_loader",
    "gather",
    "may_skip_validations",
    "unpadded_length",
    "validates_everywhere",
]

T = TypeVar("T")


def may_skip_validations(trainer: Any) -> bool:
    """Whether a process without any validation batch runs no validation, hooks and all; otherwise it is an error.

    Lightning asks the module and the data module. An iterable data set without a length does run its hooks.
    """
    asked = (trainer.lightning_module, trainer.datamodule)
    return trainer.world_size > 1 and any(
        getattr(part, "allow_zero_length_dataloader_with_multiple_devices", False) for part in asked
    )


def validates_everywhere(trainer: Any) -> bool:
    """Whether all processes will run the validations of a fit; all of them call it in `on_train_start`.

    One without any batch may run no validation hooks, and the others must not wait for it there.
    """
    # Where the first epoch ends without a validation the loaders are not there yet, and others may follow these.
    known = trainer.val_dataloaders is not None and not trainer.reload_dataloaders_every_n_epochs
    validates = sum(trainer.num_val_batches) > 0 if known else not may_skip_validations(trainer)
    return bool(trainer.strategy.reduce_boolean_decision(trainer.enable_validation and validates, all=True))


def decided_by_first(trainer: Any, decide: Callable[[], T]) -> T:
    """What process 0 decides, in all of them; all of them call it.

    Raises:
        Exception: If it fails; in the others a RuntimeError, as they would wait for it otherwise.
    """
    decision: T | None = None
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            decision = decide()
        except Exception as error:
            failure = error
    decision, told = trainer.strategy.broadcast((decision, None if failure is None else repr(failure)))
    if told is not None:
        raise failure or RuntimeError(told)
    return cast(T, decision)


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

    Raises:
        Exception: If it fails, as memory may run out; then it is raised in the other processes too, unless process 0
            fails when it has all maps.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    infos: list[Any] = [None] * world
    own = {n: (m.count, m.size, m.problem, m.batches[0].dtype if m.batches else None,
               tuple(m.batches[0].shape[1:]) if m.batches else None) for n, m in maps.items()}  # fmt: skip
    dist.all_gather_object(infos, own)
    if any(list(info) != list(own) for info in infos):
        raise RuntimeError(f"The layers differ between processes: {[list(info) for info in infos]}.")
    joined: dict[str, LayerMaps] = {}
    failure: Exception | None = None
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
        try:
            pixels = math.prod(shape[1:])  # the statistics of a map travel behind it
            padded = torch.zeros(max(counts), shape[0], pixels + len(STATISTICS), dtype=dtype, device=device)
            zeros = torch.zeros(shape[0], dtype=torch.int64, device=device)
            if layer.zeros is not None:
                padded[: layer.count, :, :pixels] = layer.maps.reshape(-1, shape[0], pixels).to(device)
                padded[: layer.count, :, pixels:] = torch.cat(layer.statistics).to(device)
                zeros += layer.zeros.to(device)
            parts = [torch.empty_like(padded) for _ in range(world)]
        except Exception as error:
            failure = failure or error
        well = torch.tensor(failure is None, dtype=torch.int64, device=device)
        dist.all_reduce(well, op=dist.ReduceOp.MIN)
        if not well:  # nobody waits for the maps of one that failed
            raise failure or RuntimeError("another process failed")
        dist.all_gather(parts, padded)
        dist.all_reduce(zeros)
        if rank == 0:
            try:
                joined[name] = _interleave(parts, counts, limit, size, shape, zeros)
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure
    return joined if rank == 0 else maps


def _interleave(
    parts: list[Tensor], counts: list[int], limit: int, size: tuple[int, ...], shape: tuple[int, ...], zeros: Tensor
) -> LayerMaps:
    """The maps of a layer, of `shape` each, and their statistics out of those of all processes, `counts` in each."""
    world = len(parts)
    order = sorted((i * world + r, r, i) for r, count in enumerate(counts) for i in range(count))
    rows = torch.stack([parts[r][i] for _, r, i in order[:limit]])
    # Sparsity is that of all samples seen, which may be a few more than those kept.
    share = len(rows) / sum(counts)
    maps, statistics = torch.split(rows, [math.prod(shape[1:]), len(STATISTICS)], 2)
    return LayerMaps([maps.reshape(-1, *shape)], len(rows), size, zeros.double() * share, statistics=[statistics])
