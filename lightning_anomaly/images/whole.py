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


def stack(items: list[Any]) -> Any:
    """Put items into a batch as a DataLoader does, but images with whole ones without shared memory."""
    if not isinstance(items[0], WithWholeImage):
        return default_collate(items)
    return WithWholeImage(*(torch.stack(images) for images in zip(*items, strict=True)))


class Described(NamedTuple):
    """A batch with the first of its whole images, and the description of all of them."""

    batch: WithWholeImage
    description: Any

    @classmethod
    def collate(cls, collate_fn: Callable[[Any], Any], describe: Callable[[Tensor], Any], items: Sequence[Any]) -> Any:
        """Put items into a batch, and describe its whole images if it has any."""
        batch = collate_fn(items)
        if not isinstance(batch, WithWholeImage):
            return batch
        described = cls(batch._replace(whole=batch.whole[:1]), describe(batch.whole))
        return described if get_worker_info() is None else described._packed()

    def _packed(self) -> bytes:
        """Pickle it: a worker would send tensors through shared memory, of which containers have little.

        Images that were bytes once are sent as bytes, a quarter of the size.
        """
        images = self.batch.image
        shrunk = images.mul(255).round_().byte() if images.dtype == torch.float32 else images
        were_bytes = shrunk is not images and torch.equal(_to_floats(shrunk), images)
        sent = self._replace(batch=self.batch._replace(image=shrunk)) if were_bytes else self
        return pickle.dumps((sent, were_bytes), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def opened(batch: Any) -> Any:
        """Return what `collate` made, also in a worker."""
        if not isinstance(batch, bytes):
            return batch
        found, were_bytes = pickle.loads(batch)
        return found._replace(batch=found.batch._replace(image=_to_floats(found.batch.image))) if were_bytes else found


def _to_floats(images: Tensor) -> Tensor:
    return images.float().div_(255)
