"""A Trainer's loaders: how many samples the first has, whether it shuffles, and a sample of what is trained on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_anomaly.capture.loaders import drawn_from, outer_sampler, reread, sampler_of

__all__ = ["part_of", "shuffles", "training_batches", "unpadded_length"]

_BATCH = 64


def _first(loaders: Any) -> Any:
    """The first of a Trainer's loaders, which may be one, several or none."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def unpadded_length(loaders: Any) -> int:
    """How many samples the first of a Trainer's loaders has over all processes, without those that come twice.

    `DistributedSampler` repeats the first samples at the end, so that all processes have the same number.
    """
    sampler = outer_sampler(_first(loaders))
    dataset: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else None
    return sys.maxsize if dataset is None else len(dataset)


def shuffles(loaders: Any) -> bool:
    """Whether the first of a Trainer's loaders draws its samples at random."""
    sampler = sampler_of(_first(loaders))
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))


def training_batches(loader: Any, size: int, seed: int, first: int | None = None) -> DataLoader[Any]:
    """Batches of a fixed random sample of a training set.

    Args:
        loader: A `DataLoader` over a data set that has a length.
        size: Number of samples; all of them if the set has fewer.
        seed: Seed of the choice.
        first: Take the sample from so many of the loader's first batches only; None takes all.

    Raises:
        ValueError: If the loader's data set cannot be indexed.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        found = type(loader).__name__ + ("" if dataset is None else f" over {type(dataset).__name__}")
        raise ValueError(
            '`probe = "train"` should be used with one training DataLoader whose data set has `__getitem__` and '
            f"`__len__`. Found {found}."
        )
    # What the loader leaves out may be the validation images.
    kept = drawn_from(loader)
    places = range(len(dataset)) if kept is None else kept
    # Without a batch sampler each item of the data set is a batch already; a batch sampler of the user's has no size.
    batch_size = None if loader.batch_sampler is None else getattr(loader.batch_sampler, "batch_size", None) or _BATCH
    places = places[: None if first is None else first * (batch_size or 1)]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:size].tolist()
    chosen = [int(places[place]) for place in order]
    # In a worker where the training has some: open files and generators of the data set's own are not shared then.
    workers = min(1, loader.num_workers)
    return reread(loader, chosen, batch_size=batch_size, num_workers=workers, seed=seed)


def part_of(sample: DataLoader[Any], share: slice, seed: int) -> DataLoader[Any]:
    """Batches of a part of the sample that `training_batches` gave."""
    positions: Any = sample.sampler  # a list
    size, workers = sample.batch_size, sample.num_workers
    return reread(sample, positions[share], batch_size=size, num_workers=workers, seed=seed)
