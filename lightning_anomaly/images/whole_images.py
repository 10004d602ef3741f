"""Whole images beside those for a network: what is computed of them is computed where they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class WithWholeImage(NamedTuple):
    """An image for a network, or a batch of them, and the whole image: an item of `FolderImages`."""

    image: Tensor
    whole: Tensor


def collate_whole(
    collate_fn: Callable[[Any], Any], describe: Callable[[Tensor], Any] | None, items: Sequence[Any]
) -> tuple[Any, Any]:
    """Put items into a batch; return it with the first of its whole images, if any, and the description of all.

    Without `describe` they stay as they are.
    """
    batch, description = collate_fn(items), None
    if isinstance(batch, WithWholeImage) and describe is not None:
        batch, description = batch._replace(whole=batch.whole[:1]), describe(batch.whole)
    return batch, description
