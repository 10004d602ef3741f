"""The samples of a probe as figures and the browser show them, taken batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.capture.images import plain_tensor
from lightning_anomaly.report.pictures import shrink

__all__ = ["SmallImages", "small_images"]

_LARGEST_IMAGE = 64  # pixels; what is shown is smaller


class SmallImages:
    """The images of a probe, or its signals, kept during a validation."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def look(self, batch: Any, limit: int) -> None:
        """Keeps those of a batch, of up to `limit` samples in all."""
        missing = limit - sum(map(len, self._batches))
        images = small_images(batch) if missing > 0 else None
        if images is not None:
            self._batches.append(images[:missing])

    def taken(self) -> Tensor | None:
        """Images `(N, C, H, W)` or signals `(N, C, L)`; None if there are none, or of several sizes."""
        return torch.cat(self._batches) if len({images.shape[1:] for images in self._batches}) == 1 else None

    def forget(self) -> None:
        """Drops them."""
        self._batches = []


def small_images(batch: Any) -> Tensor | None:
    """The samples of a batch, small and on the CPU; None if they are nothing that can be drawn.

    Returns:
        Images, or the middle slices of volumes, `(n, C, H, W)` of at most 64 pixels a side; or signals `(n, C, L)`.
    """
    tensor = plain_tensor(batch)
    if tensor is None or not 2 <= tensor.ndim <= 5 or not tensor.numel():
        return None
    return shrink(tensor, _LARGEST_IMAGE).clone()  # the model may change its input in place
