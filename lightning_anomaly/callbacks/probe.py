"""The probe: which samples the maps are taken from, gathered from all processes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset

from lightning_anomaly.capture import LayerMaps, MapCapture, evaluating, pool_maps, taking_alone

__all__ = [
    "first_tensor",
    "gather",
    "isolated_random_state",
    "probe_images",
    "run_training_probe",
    "shuffles",
    "training_batches",
    "unpadded_length",
]

_BATCH = 64
_LARGEST_IMAGE = 64  # pixels; what a figure shows is smaller


def first_tensor(batch: Any) -> Tensor | None:
    """The first floating-point tensor in a batch of tensors, tuples, lists and dicts: the usual input of a model."""
    if isinstance(batch, Tensor):
        return batch if batch.is_floating_point() else None
    if isinstance(batch, Mapping):
        return next((t for t in map(first_tensor, batch.values()) if t is not None), None)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return next((t for t in map(first_tensor, batch) if t is not None), None)
    return None


def probe_images(batch: Any) -> Tensor | None:
    """The images `(n, C, H, W)` of a batch, pooled to at most 64 pixels a side, on the CPU; None if there are none."""
    tensor = first_tensor(batch)
    if tensor is None or tensor.ndim != 4:
        return None
    return pool_maps(tensor.detach().float(), _LARGEST_IMAGE).cpu().clone()


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seeds the random numbers of torch, NumPy and Python inside, and gives their states back at the end.

    Loading a sample may draw random numbers; it then draws the same ones each time and takes none from the training.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def run_training_probe(
    trainer: Any, pl_module: Any, capture: MapCapture, size: int, seed: int, on_batch: Callable[[Any], None]
) -> None:
    """Run a module on a fixed random sample of its training set, as Lightning would in evaluation, and take the maps.

    Args:
        trainer: The Trainer.
        pl_module: The module; it is called with the batch's first floating-point tensor, or with the batch.
        capture: What takes the maps.
        size: Number of samples over all processes, each of which runs its share.
        seed: Seed of the choice.
        on_batch: Called with every batch.
    """
    strategy = trainer.strategy
    precision = strategy.precision_plugin
    share = slice(trainer.global_rank, None, trainer.world_size)  # dealt out as `gather` expects it
    with evaluating(pl_module), taking_alone(capture), isolated_random_state(seed):
        for batch in training_batches(trainer.train_dataloader, size, seed, share):
            on_batch(batch)
            batch = pl_module._on_before_batch_transfer(precision.convert_input(batch))
            batch = strategy.batch_to_device(batch, dataloader_idx=0)
            inputs = first_tensor(batch)
            with precision.forward_context(), capture:
                pl_module(batch if inputs is None else inputs)
            if capture.full:
                break


def training_batches(loader: Any, size: int, seed: int, share: slice = slice(None)) -> Iterator[Any]:
    """Batches of a fixed random sample of a training set.

    Args:
        loader: A `DataLoader` over a data set that has a length.
        size: Number of samples; all of them if the set has fewer.
        seed: Seed of the choice.
        share: The part of the sample that is wanted.

    Raises:
        ValueError: If the loader's data set cannot be indexed.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        found = type(loader).__name__ + ("" if dataset is None else f" over {type(dataset).__name__}")
        raise ValueError(
            '`probe = "train"` should be used with one training DataLoader whose data set has `__getitem__` and '
            f'`__len__`. Found {found}; `probe = "val"` needs neither.'
        )
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:size].tolist()
    # Without a batch sampler each item of the data set is a batch already; a batch sampler of the user's has no size.
    batch_size = None if loader.batch_sampler is None else loader.batch_size or _BATCH
    # Its own generator: a DataLoader without one draws its base seed from the global random numbers.
    return iter(
        DataLoader(
            Subset(dataset, chosen[share]),
            batch_size=batch_size,
            collate_fn=loader.collate_fn,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def _first_loader(loaders: Any) -> Any:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def shuffles(loaders: Any) -> bool:
    """Whether the first of a Trainer's loaders draws its samples at random."""
    return isinstance(getattr(_first_loader(loaders), "sampler", None), RandomSampler)


def unpadded_length(loaders: Any) -> int:
    """How many samples the first of a Trainer's loaders has over all processes, without those that come twice.

    `DistributedSampler` repeats the first samples at the end, so that all processes have the same number.
    """
    sampler = getattr(_first_loader(loaders), "sampler", None)
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
