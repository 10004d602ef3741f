"""A user's data loader, read again: items of its data set by their positions, loaded as it loads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

__all__ = ["drawn_from", "reread"]


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


def drawn_from(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The positions that a loader with a SubsetRandomSampler draws from, also in a batch sampler; None for others."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)  # as Lightning wraps it for processes
    return sampler.indices if isinstance(sampler, SubsetRandomSampler) else None
