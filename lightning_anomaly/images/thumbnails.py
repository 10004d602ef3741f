"""Small images of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 64  # longest side of a small image (pixels)
_PIXELS = 6_000_000  # in all images of a page together; a browser unpacks each to four bytes


def shrink_images(samples: Tensor, side: int) -> Tensor:
    """Reduce images `(N, C, H, W)`, or middle slices of volumes, to 1 or 3 channels and `side` pixels, on the CPU."""
    samples = samples.detach()
    if samples.ndim == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    if samples.shape[1] != 3:
        samples = samples[:, :1]
    window = -(-max(samples.shape[2:]) // side)
    if window > 1:
        pooled = functional.avg_pool2d(samples.float(), window, ceil_mode=True, count_include_pad=False)
        samples = pooled.round().to(torch.uint8) if samples.dtype == torch.uint8 else pooled
    return samples.cpu()


def black_and_white(images: Tensor) -> Tensor:
    """Compute the values that are drawn black and white `(2, C, 1, 1)`: the range of most images `(n, C, H, W)`."""
    pixels = images.flatten(2)
    # Quantiles, as up to 5% of the images may be too dark, and up to 5% too bright.
    low, high = pixels.amin(2).float().nanquantile(0.05, dim=0), pixels.amax(2).float().nanquantile(0.95, dim=0)
    return torch.stack([low, high])[..., None, None]


def to_bytes(images: Tensor, limits: Tensor) -> Tensor:
    """Convert small images `(n, C, H, W)` to uint8 `(n, H, W, C)`, where `limits` are black and white."""
    if images.dtype != torch.uint8:
        low, high = limits
        scaled = (images.float() - low).div_((high - low).clamp_min(1e-12))
        images = scaled.nan_to_num_(0.0).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return images.permute(0, 2, 3, 1)


def draw_images(images: Tensor) -> Tensor:
    """Draw the small images `(N, C, H, W)` of a page, uint8 `(N, H, W, C)`; many have shorter sides."""
    small = shrink_images(images, max(1, min(SIDE, math.isqrt(_PIXELS // len(images)))))
    return to_bytes(small, black_and_white(small))
