"""Whole images beside those for a network: what is computed of them is computed where they are decoded."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info


class WithWholeImage(NamedTuple):
    """An image for a network, or a batch of them, and the whole image: an item of `FolderImages`."""

    image: Tensor
    whole: Tensor


def stack_items(items: list[Any]) -> Any:
    """Put items into a batch as a DataLoader does, but images with whole ones without shared memory."""
    if not isinstance(items[0], WithWholeImage):
        return default_collate(items)
    return WithWholeImage(*(torch.stack(images) for images in zip(*items, strict=True)))


def collate_whole(
    collate_fn: Callable[[Any], Any], describe: Callable[[Tensor], Any] | None, items: Sequence[Any]
) -> tuple[Any, Any] | bytes:
    """Put items into a batch; return it with the first of its whole images, if any, and the description of all.

    Without `describe` they stay as they are. A worker would send tensors through shared memory, of which containers
    have little, and returns bytes instead.
    """
    batch, description = collate_fn(items), None
    if isinstance(batch, WithWholeImage) and describe is not None:
        batch, description = batch._replace(whole=batch.whole[:1].clone()), describe(batch.whole)
    collated = batch, description
    return collated if get_worker_info() is None else pickle.dumps(collated, pickle.HIGHEST_PROTOCOL)


def unpickled(collated: Any) -> Any:
    """Return what `collate_whole` made, also in a worker."""
    return pickle.loads(collated) if isinstance(collated, bytes) else collated
