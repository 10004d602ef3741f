"""A user's data loader: which positions it draws, and its items read again by their positions."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_anomaly.images.random_state import isolated_random_state

BATCH = 64  # items in a batch where nobody says


def reread(
    loader: DataLoader[Any], batches: Sequence[list[int]], *, num_workers: int, seed: int = 0
) -> DataLoader[Any]:
    """Load items of a loader's map-style data set as the loader does, without drawing a global random number.

    Worker processes of the data set draw from the seed.
    """
    return DataLoader(
        loader.dataset,  # itself, as `worker_init_fn` may reach for it
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if num_workers else None,
        # Without one of its own a DataLoader draws its base seed from the global random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def batch_size_of(loader: DataLoader[Any]) -> int | None:
    """Return the number of items in a batch; None where each item is a batch already."""
    batches = loader.batch_sampler  # one of the user's may have no size
    return None if batches is None else getattr(batches, "batch_size", None) or BATCH


def sampler_of(loader: Any) -> Any:
    """Find what draws a loader's positions, also within a batch sampler; None if that, or the loader, has none."""
    batches: Any = getattr(loader, "batch_sampler", None)
    return getattr(loader if batches is None else batches, "sampler", None)


def drawn_positions(loader: DataLoader[Any]) -> list[int] | None:
    """Draw the positions of one epoch of all processes, the same ones each time; None if that is not possible.

    A copy of the loader's sampler draws them, so that the run draws the same positions as without it.
    """
    dataset: Any = loader.dataset
    sampler = sampler_of(loader)
    in_batches = sampler is None
    try:
        # A sampler may hold the data set, which is not to be copied.
        drawing: Any = copy.deepcopy(loader.batch_sampler if in_batches else sampler, {id(dataset): dataset})
        if isinstance(drawing, DistributedSampler):
            drawing.rank, drawing.num_replicas, drawing.num_samples, drawing.epoch = 0, 1, drawing.total_size, 0
        if isinstance(getattr(drawing, "generator", None), torch.Generator):
            drawing.generator = torch.Generator().manual_seed(0)
        with isolated_random_state(0):
            most = max(len(dataset), len(drawing) if hasattr(drawing, "__len__") else 0)  # some never end
            return [int(one) for one in islice(chain.from_iterable(drawing) if in_batches else drawing, most)]
    except Exception:  # it cannot be copied, say, or draws something else than positions
        return None


def first_loader(loaders: Any) -> Any:
    """Return the first of a Trainer's loaders, which may be one, several or none."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders


def unpadded_length(loaders: Any) -> int:
    """Count the samples of the first of a Trainer's loaders over all processes, without those that come twice.

    `DistributedSampler` repeats the first samples at the end, so that all processes have the same number.
    """
    sampler = sampler_of(first_loader(loaders))
    dataset: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else None
    return sys.maxsize if dataset is None else len(dataset)


def shuffles(loaders: Any) -> bool:
    """Whether the first of a Trainer's loaders draws its samples at random."""
    sampler = sampler_of(first_loader(loaders))
    is_random = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
    return bool(getattr(sampler, "shuffle", is_random))


def random_sample(positions: Iterable[int], size: int, seed: int) -> list[int]:
    """Choose some of the positions that a loader draws, the same ones each time; all if there are fewer."""
    places = sorted({*positions})
    order = torch.randperm(len(places), device="cpu", generator=torch.Generator().manual_seed(seed))[:size].tolist()
    return [places[place] for place in order]
