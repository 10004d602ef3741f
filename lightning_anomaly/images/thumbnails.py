"""Draw samples of any kind as small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 64  # longest side of a small image (pixels)
KEPT = 256  # images of an `OutlierReport`, at most
_CURVE = (48, 64)  # height and width of a drawn signal (pixels)
_CURVE_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))  # Okabe and Ito's, for up to three channels


def shrink(samples: Tensor, side: int) -> Tensor:
    """Reduce images, volumes or signals, see `probe_images`, to what `drawn` needs, on the CPU.

    Images and the middle slices of volumes become `(N, C, H, W)` with one or three channels and sides of at most `side`
    pixels. Signals become `(N, C, L)` with up to three channels; of a long one the extremes of each column remain.
    """
    samples = samples.detach()
    if not samples.is_floating_point() and samples.dtype != torch.uint8:
        samples = samples.float()
    if samples.ndim < 4:
        return _extremes(samples.reshape(len(samples), -1, samples.shape[-1])[:, : len(_CURVE_COLOURS)]).cpu()
    if samples.ndim == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    if samples.shape[1] != 3:
        samples = samples[:, :1]
    window = -(-max(samples.shape[2:]) // side)
    if window > 1:
        pooled = functional.avg_pool2d(samples.float(), window, ceil_mode=True, count_include_pad=False)
        samples = pooled.round().to(torch.uint8) if samples.dtype == torch.uint8 else pooled
    return samples.cpu()


class Thumbnails(NamedTuple):
    """Results of `shrink` in bytes, to keep many of them.

    Attributes:
        values: Bytes from 0, the smallest value of an image's channel, to 255, the largest one `(n, C, ...)`.
        low: The smallest values `(n, C)`.
        high: The largest values `(n, C)`.
    """

    values: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, samples: Tensor, side: int) -> Thumbnails:
        """Shrink samples and convert them to bytes; NaN becomes 0."""
        small = shrink(samples, side).float().nan_to_num()
        low, high = small.flatten(2).aminmax(dim=2)
        ends = [end.reshape(*low.shape, *[1] * (small.ndim - 2)) for end in (low, high)]
        scaled = (small - ends[0]) / (ends[1] - ends[0]).clamp_min(1e-30)
        return cls(scaled.mul(255).round().to(torch.uint8), low, high)

    @staticmethod
    def join(parts: Sequence[Thumbnails | None]) -> Thumbnails | None:
        """Join parts; None if one is None."""
        present = [part for part in parts if part is not None]
        if len(present) < len(parts) or not parts:
            return None
        return Thumbnails(*(torch.cat(tensors) for tensors in zip(*present, strict=True)))

    def select(self, samples: Any) -> Thumbnails:
        """Select samples."""
        return Thumbnails(*(tensor[samples] for tensor in self))

    def ends(self) -> Thumbnails:
        """Keep the ranges only."""
        return self._replace(values=self.values.flatten(2)[..., :0])

    def ranges(self) -> Tensor:
        """Return the smallest and the largest values as samples of two pixels."""
        ends = torch.stack([self.low, self.high], 2)
        return ends[:, :, None] if self.values.ndim != 3 else ends

    def drawn(self, ordinary: Tensor) -> Tensor:
        """Draw the samples, see `drawn`."""
        low, high = (end.reshape(*end.shape, *[1] * (self.values.ndim - 2)) for end in (self.low, self.high))
        return drawn(low + self.values / 255 * (high - low), ordinary)


def drawn(samples: Tensor, ordinary: Tensor) -> Tensor:
    """Draw results of `shrink` as uint8 `(N, height, width, channels)`, scaled to the range of `ordinary` samples."""
    return displayed(samples, ordinary) if samples.ndim == 4 else _curves(samples, ordinary)


def displayed(images: Tensor, ordinary: Tensor) -> Tensor:
    """Convert images `(n, C, H, W)` to uint8 `(n, H, W, C)` with one or three channels.

    Black to white is the range of `ordinary` images, which have the same channels and type; bytes stay as they are.
    """
    shown, ordinary = images.detach().cpu(), ordinary.detach()
    if images.shape[1] != 3:
        shown, ordinary = shown[:, :1], ordinary[:, :1]
    if images.dtype != torch.uint8:
        pixels = ordinary.flatten(2)
        # Quantiles, as up to 5% of the images may be too dark, and up to 5% too bright.
        low = pixels.amin(2).float().cpu().nanquantile(0.05, dim=0)[:, None, None]
        high = pixels.amax(2).float().cpu().nanquantile(0.95, dim=0)[:, None, None]
        scaled = (shown.float() - low) / (high - low).clamp_min(1e-12)
        shown = scaled.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1)


def _extremes(signals: Tensor) -> Tensor:
    """Reduce signals `(N, C, L)` to the largest and the smallest value in each column of pixels, if they are longer."""
    width = _CURVE[1]
    if signals.shape[2] <= 2 * width:
        return signals
    finite = signals.float().nan_to_num(math.nan, math.nan, math.nan)
    largest = functional.adaptive_max_pool1d(finite.nan_to_num(-math.inf), width)
    smallest = -functional.adaptive_max_pool1d((-finite).nan_to_num(-math.inf), width)
    return torch.stack([largest, smallest], 3).flatten(2)  # infinite where no value is finite


def _curves(signals: Tensor, ordinary: Tensor) -> Tensor:
    """Draw signals `(N, C, L)` as `(N, height, width, 3)`, all on one scale, that of ordinary signals."""
    height, width = _CURVE
    finite, ordinary = (values.float().nan_to_num(math.nan, math.nan, math.nan) for values in (signals, ordinary))
    low, high = ordinary.amin((1, 2)).nanquantile(0.05), ordinary.amax((1, 2)).nanquantile(0.95)
    rows = ((finite - low) / (high - low).clamp_min(1e-12)).nan_to_num(0.5).clamp(0, 1) * (height - 1)
    if rows.shape[2] < width:
        rows = functional.interpolate(rows, width, mode="linear", align_corners=True)
    top, bottom = functional.adaptive_max_pool1d(rows, width), -functional.adaptive_max_pool1d(-rows, width)
    # From one column to the next the curve is connected.
    top[..., 1:], bottom[..., 1:] = (
        torch.maximum(top[..., 1:], bottom[..., :-1]),
        torch.minimum(bottom[..., 1:], top[..., :-1]),
    )
    images = signals.new_full((len(signals), height, width, 3), 255, dtype=torch.uint8)
    ruler = torch.arange(height - 1, -1, -1, device=signals.device)[:, None]
    for channel in reversed(range(rows.shape[1])):
        inside = (ruler >= bottom[:, channel, None].round()) & (ruler <= top[:, channel, None].round())
        images[inside] = images.new_tensor(_CURVE_COLOURS[channel])
    return images


def check_images(images: Any, n_samples: int, dimensions: tuple[int, ...]) -> None:
    """Raise ValueError unless `images` has an image for each of `n_samples` and one of these numbers of dimensions."""
    found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if isinstance(found, str) or len(found) not in dimensions or found[0] != n_samples or 0 in found:
        raise ValueError(
            f"Parameter `images` should be a tensor of shape ({n_samples}, ...), an image for each probe sample, with "
            f"{' or '.join(map(str, dimensions))} dimensions. Found {found}."
        )
