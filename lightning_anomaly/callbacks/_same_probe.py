"""Whether every validation sees the same images, by a few pixels of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.capture.images import magnitudes, plain_tensor

__all__ = ["CHANGED", "ProbeImages"]

CHANGED = {
    "val": "The validation images of the probe changed from one validation to the next, so the anomaly counts are not "
    'comparable. Give the same ones each time, without random augmentation, or use `probe = "train"`.',
    "train": "The training images of the probe changed from one validation to the next, so the anomaly counts are not "
    "comparable. Augment with the random numbers of torch, NumPy or Python, which are the same ones for each probe, or "
    'use `probe = "val"`: without a worker, a generator of the data set\'s own gives the training other numbers too.',
}
_SIDE = 4  # pixels, or up to twice as many, along each axis of a sample: what changes images changes some of them


class ProbeImages:
    """A few pixels of each image of the probe, from one validation to the next.

    Rounding that differs, as on a GPU it may, is no change: they are compared to a hundredth.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._now: list[Tensor] = []
        self._seen = 0

    def look(self, batch: Any, limit: int) -> None:
        """Takes the pixels of a batch, up to `limit` samples; they stay on their device, so nothing waits for it."""
        images = plain_tensor(batch)
        if images is None or images.numel() == 0:
            return
        images = images.detach()[: max(0, limit - self._seen)]
        grid = [slice(None)] + [slice(size // _SIDE // 2, None, max(1, size // _SIDE)) for size in images.shape[1:]]
        # A view, whatever the memory format; then a copy, as the model may change its input in place.
        self._now.append(magnitudes(images[tuple(grid)]).to(torch.float32, copy=True).flatten())
        self._seen += len(images)

    def forget(self) -> None:
        """Drops what was seen of a validation that has not ended."""
        self._now, self._seen = [], 0

    def changed(self) -> bool:
        """Ends a validation; whether its images are others than those of the one before."""
        if not self._seen:
            return False
        before, self._before = self._before, torch.cat(self._now).cpu()
        self.forget()
        if before is None or before.shape != self._before.shape:
            return before is not None
        tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().mean().item()
        return not torch.allclose(before, self._before, rtol=1e-2, atol=tolerance, equal_nan=True)
