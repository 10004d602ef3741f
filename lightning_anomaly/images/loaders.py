"""Draw the positions of a user's data loader, and load its items again by their positions."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_anomaly._internal.random_state import isolated_random_state

BATCH = 64  # images, the default batch size


def load_like(loader: DataLoader[Any], **changed: Any) -> DataLoader[Any]:
    """Load a loader's data set as it does, but for what is `changed`, without drawing a global random number."""
    kept = "dataset", "collate_fn", "num_workers", "worker_init_fn", "multiprocessing_context", "timeout"
    options = {name: getattr(loader, name) for name in kept} | changed
    return DataLoader(**options, generator=torch.Generator().manual_seed(0))  # without it a random number is drawn


def batch_size_of(loader: DataLoader[Any]) -> int | None:
    """Return the number of items in a batch; None if the loader does not put items into batches."""
    batches = loader.batch_sampler  # a user's may have no `batch_size`
    return None if batches is None else getattr(batches, "batch_size", None) or BATCH


def sampler_of(loader: Any) -> Any:
    """Return the sampler of a loader or of its batch sampler; None if there is none."""
    batches: Any = getattr(loader, "batch_sampler", None)
    return getattr(loader if batches is None else batches, "sampler", None)


def epoch_positions(loader: DataLoader[Any]) -> list[int] | None:
    """Draw the positions of one epoch over all processes with a copy of the sampler and a seed; None if that fails."""
    dataset: Any = loader.dataset
    sampler = sampler_of(loader)
    in_batches = sampler is None
    try:
        # The sampler may hold the data set, which must not be copied.
        copied: Any = copy.deepcopy(loader.batch_sampler if in_batches else sampler, {id(dataset): dataset})
        if isinstance(copied, DistributedSampler):
            copied.rank, copied.num_replicas, copied.num_samples, copied.epoch = 0, 1, copied.total_size, 0
        if isinstance(getattr(copied, "generator", None), torch.Generator):
            copied.generator = torch.Generator().manual_seed(0)
        with isolated_random_state(0):
            limit = max(len(dataset), len(copied) if hasattr(copied, "__len__") else 0)  # some samplers never end
            return [int(position) for position in islice(chain.from_iterable(copied) if in_batches else copied, limit)]
    except Exception:  # for example, the sampler cannot be copied or draws something other than positions
        return None


def first_loader(loaders: Any) -> Any:
    """Return the first of a Trainer's loaders, which may be one loader, several or None."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def unpadded_length(loaders: Any) -> int:
    """Count the samples of all processes without `DistributedSampler`'s padding; without one, the largest integer."""
    sampler = sampler_of(first_loader(loaders))
    data: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else None
    return sys.maxsize if data is None else len(data)


def shuffles(loaders: Any) -> bool:
    """Return whether the first of a Trainer's loaders draws its samples at random."""
    sampler = sampler_of(first_loader(loaders))
    is_random = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
    return bool(getattr(sampler, "shuffle", is_random))


def shuffled(positions: Iterable[int]) -> list[int]:
    """Return different positions in a random order, always the same one."""
    candidates = sorted({*positions})
    order = torch.randperm(len(candidates), device="cpu", generator=torch.Generator().manual_seed(0))
    return [candidates[place] for place in order.tolist()]


def loader_of(images: Any, argument: str) -> DataLoader[Any]:
    """Return a loader over a data set with a length; raise TypeError or ValueError for anything else."""
    loader = images
    if isinstance(images, Dataset):
        given = getattr(dataset_with(images, "num_workers"), "num_workers", 0)  # see `FolderImages`
        workers = given if isinstance(given, int) else 0
        forked = "fork" if workers and sys.platform == "linux" else None
        loader = DataLoader(images, BATCH, num_workers=workers, multiprocessing_context=forked)
    data = loader.dataset if isinstance(loader, DataLoader) else loader
    if not isinstance(loader, DataLoader) or isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        found = type(data).__name__
    elif loader.batch_sampler is None:
        found = "`batch_size=None`: give a number, and a data set of single images"
    else:
        return loader
    raise (ValueError if isinstance(loader, DataLoader) else TypeError)(
        f"Parameter `{argument}` should be a tensor (N, ...), a map-style Dataset with a length, or a DataLoader over "
        f"one that puts its images into batches. Found {found}."
    )


def dataset_with(dataset: Any, attribute: str) -> Any:
    """Return the data set with an attribute: this one or the one that it wraps; None if neither has it."""
    while dataset is not None and not hasattr(dataset, attribute):
        dataset = getattr(dataset, "dataset", None)
    return dataset
