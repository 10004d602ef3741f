"""The samples of a probe: some of their pixels, and small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.images.source import first_tensor
from lightning_anomaly.images.thumbnails import SIDE, shrink

_GRID = 4  # pixels compared along each axis of a sample; up to 7, as the step is rounded down


def sample_pixels(images: Tensor, limit: int) -> Tensor:
    """Copy some pixels of each sample, of `limit` samples at most; they stay on their device."""
    places = [slice(size // _GRID // 2, None, max(1, size // _GRID)) for size in images.shape[1:]]
    grid = (slice(limit), *places)
    # A copy, as the model may change its input in place.
    return images.detach()[grid].to(torch.float32, copy=True).flatten()


def same_pixels(before: Tensor, now: Tensor) -> bool:
    """Whether pixels are equal within 1%, as rounding may differ on a GPU."""
    tolerance = 1e-3 * before.nan_to_num(0, 0, 0).abs().sum().item() / max(1, len(before))
    return before.shape == now.shape and torch.allclose(before, now, rtol=1e-2, atol=tolerance, equal_nan=True)


class ProbeSamples:
    """Collect pixels and, with `keep_images`, small images of samples, batch by batch."""

    def __init__(self, keep_images: bool) -> None:
        self.count = 0  # samples in the batches so far
        self._pixels: list[Tensor] = []
        self._images: list[Tensor] | None = [] if keep_images else None

    def add(self, batch: Any, limit: int) -> None:
        """Add a batch of the probe, `limit` samples at most; volumes give their middle slices."""
        images = first_tensor(batch)
        if images is not None:
            self.count += len(images)
            self._pixels.append(sample_pixels(images, limit))
        if images is None or not 2 <= images.ndim <= 5 or not images.numel():
            self._images = None  # cannot be drawn
        elif self._images is not None:
            # A copy, as the model may change its input in place.
            self._images.append(shrink(images, SIDE)[:limit].clone())

    @property
    def pixels(self) -> Tensor:
        """Some pixels of each sample, to recognize it in the next probe."""
        return torch.cat([pixels.cpu() for pixels in self._pixels]) if self._pixels else torch.zeros(0, device="cpu")

    @property
    def images(self) -> Tensor | None:
        """Images `(n, C, H, W)` or signals `(n, C, L)`; None if unknown, or of several sizes.

        Their number may differ from that of the maps: a layer may get parts of a batch.
        """
        one_size = len({images.shape[1:] for images in self._images or ()}) == 1
        return torch.cat(self._images) if self._images and one_size else None
