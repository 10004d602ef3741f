"""A user's data loader, read again: items of its data set by their positions, loaded as it loads them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_anomaly.capture.probe import isolated_random_state

__all__ = ["drawn_from", "outer_sampler", "reread", "sampler_of"]


def reread(
    loader: DataLoader[Any], positions: Sequence[int], *, batch_size: int | None, num_workers: int, seed: int = 0
) -> DataLoader[Any]:
    """Items of a loader's data set, in batches; no global random number is drawn.

    Args:
        loader: A loader over a map-style data set.
        positions: Which items, in this order.
        batch_size: Items in a batch; None where each item is a batch already.
        num_workers: Processes that load.
        seed: Seed of what the data set draws in them.
    """
    return DataLoader(
        loader.dataset,  # itself, as `worker_init_fn` may reach for it
        sampler=positions,
        batch_size=batch_size,
        collate_fn=loader.collate_fn,
        num_workers=num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if num_workers else None,
        # Its own: without one a DataLoader draws its base seed from the global random numbers.
        generator=torch.Generator().manual_seed(seed),
    )


def outer_sampler(loader: Any) -> Any:
    """What draws a loader's positions, also within a batch sampler; None if that, or the loader, has none."""
    batches: Any = getattr(loader, "batch_sampler", None)
    return getattr(loader if batches is None else batches, "sampler", None)


def sampler_of(loader: Any) -> Any:
    """`outer_sampler`, or the one within that Lightning divides among processes."""
    sampler = outer_sampler(loader)
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


def drawn_from(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The positions that a loader's sampler draws from; None for all of them, or if it does not draw positions.

    A sampler or batch sampler of a kind that is not known is asked: a copy of it draws for one epoch, and what it gives
    is sorted, as it may come in another order each time.
    """
    dataset: Any = loader.dataset
    sampler = sampler_of(loader)
    if sampler is None:
        return _asked(loader.batch_sampler, chain.from_iterable, dataset)
    if type(sampler) in (SequentialSampler, RandomSampler) or isinstance(sampler, DistributedSampler):
        return None
    if isinstance(sampler, (Sequence, SubsetRandomSampler)):
        return _unless_all(sampler.indices if isinstance(sampler, SubsetRandomSampler) else sampler, len(dataset))
    if isinstance(sampler, WeightedRandomSampler):
        return _unless_all(sampler.weights.nonzero()[:, 0], len(dataset))
    return _asked(sampler, iter, dataset)


def _asked(sampler: Any, flatten: Callable[[Any], Iterator[Any]], dataset: Any) -> list[int] | None:
    # A sampler may hold the data set, which is not to be copied.
    held = {id(data): data for data in (dataset, getattr(dataset, "dataset", None))}
    most = max(len(dataset), len(sampler) if isinstance(sampler, Sized) else 0)  # some never end
    try:
        with isolated_random_state(0):
            found = _unless_all(islice(flatten(copy.deepcopy(sampler, held)), most), len(dataset))
    except Exception:  # it cannot be copied, say
        return None
    return None if found is None else sorted(found)


def _unless_all(drawn: Iterable[Any], size: int) -> list[int] | None:
    """The positions drawn, each once; None if these are all `size` that there are, or something else."""
    own = list(drawn)
    if not all(isinstance(one, Integral) or (isinstance(one, Tensor) and one.ndim == 0) for one in own):
        return None
    positions = list(dict.fromkeys(map(int, own)))
    return None if len(positions) == size else positions
