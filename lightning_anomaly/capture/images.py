"""What a model sees of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_tensor", "magnitudes", "plain_tensor"]


def first_tensor(batch: Any) -> Tensor | None:
    """The usual input of a model, in a batch of tuples, lists, dicts, dataclasses: its first floating-point tensor.

    Or images of another type before it, such as bytes, which the model scales itself: the floating-point one is their
    target then. (Integers of 16 or 32 bits may be if they have channels, else they are masks or boxes; those of 64 are
    classes, booleans masks.) A number for each sample is only taken where no image follows.
    """
    found = list(_candidates(batch))
    if found and found[0].ndim < 2:
        return next((tensor for tensor in found if tensor.ndim > 2), found[0])
    return found[0] if found else None


def _candidates(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        axes = {torch.uint8: 3, torch.int64: 99, torch.bool: 99}.get(batch.dtype, 3 if batch.is_complex() else 4)
        if batch.is_floating_point() or batch.ndim >= axes:
            yield batch
    elif isinstance(batch, Mapping):
        yield from _candidates(list(batch.values()))
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for part in batch:
            yield from _candidates(part)
    elif is_dataclass(batch) and not isinstance(batch, type):
        yield from _candidates([getattr(batch, field.name, None) for field in fields(batch)])


def plain_tensor(batch: Any) -> Tensor | None:
    """`first_tensor` where its shape says how many samples there are; None if it is nested, sparse or a number."""
    tensor = first_tensor(batch)
    if tensor is None or tensor.is_nested or tensor.layout is not torch.strided or tensor.ndim == 0:
        return None
    return tensor


def magnitudes(values: Tensor) -> Tensor:
    """Values that can be drawn and compared: of complex ones how large they are."""
    return values.abs() if values.is_complex() else values
