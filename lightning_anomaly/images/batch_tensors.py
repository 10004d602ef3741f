"""Find the tensors, and the images, in a nested batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


def named_tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested mappings, sequences and dataclasses, with the keys or places that lead to them."""
    if isinstance(values, Tensor):
        yield name, values
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        parts = values.items()
    elif is_dataclass(values) and not isinstance(values, type):
        parts = ((field.name, getattr(values, field.name)) for field in fields(values))
    elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        parts = zip(getattr(values, "_fields", range(len(values))), values, strict=True)
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def first_tensor(batch: Any) -> Tensor | None:
    """Find the input of a model in a nested batch: its first tensor of floating-point numbers or of images in bytes.

    A tensor without axes of an image is taken only if none with such axes follows.
    """
    inputs = [
        tensor
        for _, tensor in named_tensors(batch)
        if (tensor.ndim >= 3 if tensor.dtype == torch.uint8 else tensor.ndim >= 1 and tensor.is_floating_point())
    ]
    inputs = [tensor for tensor in inputs if tensor.ndim > 2] or inputs
    return inputs[0] if inputs else None


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
