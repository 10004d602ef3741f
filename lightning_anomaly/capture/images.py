"""What a model sees of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_tensor", "plain_tensor"]


def first_tensor(batch: Any) -> Tensor | None:
    """The usual input of a model, in a batch of tuples, lists, dicts, dataclasses: its first floating-point tensor.

    Or images as bytes before it, which the model scales itself: the floating-point one is their target then.
    """
    if isinstance(batch, Tensor):
        return batch if batch.is_floating_point() or (batch.dtype == torch.uint8 and batch.ndim > 2) else None
    if isinstance(batch, Mapping):
        return next((t for t in map(first_tensor, batch.values()) if t is not None), None)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return next((t for t in map(first_tensor, batch) if t is not None), None)
    if is_dataclass(batch) and not isinstance(batch, type):
        return first_tensor([getattr(batch, field.name, None) for field in fields(batch)])
    return None


def plain_tensor(batch: Any) -> Tensor | None:
    """`first_tensor` where its shape says how many samples there are; None if it is nested, sparse or a number."""
    tensor = first_tensor(batch)
    if tensor is None or tensor.is_nested or tensor.layout is not torch.strided or tensor.ndim == 0:
        return None
    return tensor
