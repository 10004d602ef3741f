"""Whole images beside those for a network: what is computed of them is computed where they are decoded."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from lightning_anomaly.images.batch_tensors import tensors_in


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

    Without `describe` they stay as they are. A worker sends tensors through shared memory, of which containers have
    little: then it returns bytes, which takes a third longer.
    """
    batch, description = collate_fn(items), None
    if isinstance(batch, WithWholeImage) and describe is not None:
        batch, description = batch._replace(whole=batch.whole[:1].clone()), describe(batch.whole)
    collated = batch, description
    return collated if _fits_shared_memory(collated) else pickle.dumps(collated, pickle.HIGHEST_PROTOCOL)


def _fits_shared_memory(collated: Any) -> bool:
    """Return whether each worker has room for two such batches in shared memory; no worker needs any."""
    worker = get_worker_info()
    size = sum(tensor.nbytes for tensor in tensors_in(collated))
    with suppress(OSError):  # not Linux
        return worker is None or 2 * worker.num_workers * size < shutil.disk_usage("/dev/shm").free
    return False


def unpickled(collated: Any) -> Any:
    """Return what `collate_whole` made, also in a worker."""
    return pickle.loads(collated) if isinstance(collated, bytes) else collated
