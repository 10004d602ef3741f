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


class Described(NamedTuple):
    """A batch with the first of its whole images, and the description of all of them."""

    batch: WithWholeImage
    description: Any


class _Pickled(NamedTuple):
    """A batch from a worker, which would send tensors through shared memory, of which containers have little."""

    data: bytes


def collate_whole(collate_fn: Callable[[Any], Any], describe: Callable[[Tensor], Any], items: Sequence[Any]) -> Any:
    """Put items into a batch, and describe its whole images if it has any."""
    batch = collate_fn(items)
    if isinstance(batch, WithWholeImage):
        batch = Described(batch._replace(whole=batch.whole[:1].clone()), describe(batch.whole))
    return batch if get_worker_info() is None else _Pickled(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))


def unpickled(batch: Any) -> Any:
    """Return what `collate_whole` made, also in a worker."""
    return pickle.loads(batch.data) if isinstance(batch, _Pickled) else batch
