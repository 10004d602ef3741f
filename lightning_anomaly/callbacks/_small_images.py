"""The samples of a probe as figures and the browser show them, taken batch by batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_anomaly.browser import shrink
from lightning_anomaly.capture.images import plain_tensor

__all__ = ["small_images"]

_LARGEST_IMAGE = 64  # pixels; what is shown is smaller


def small_images(batch: Any) -> Tensor | None:
    """The samples of a batch, small and on the CPU; None if they are nothing that can be drawn.

    Returns:
        Images, or the middle slices of volumes, `(n, C, H, W)` of at most 64 pixels a side; or signals `(n, C, L)`.
    """
    tensor = plain_tensor(batch)
    if tensor is None or not 2 <= tensor.ndim <= 5 or not tensor.numel():
        return None
    return shrink(tensor, _LARGEST_IMAGE).clone()  # the model may change its input in place
