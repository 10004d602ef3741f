"""Describe images by statistics of their pixels, without the network."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly._internal.threads import torch_in_threads

_WINDOW = 4  # side of the blocks in which patterns are measured (pixels)
_WAVES = np.cos(math.pi / _WINDOW * np.arange(_WINDOW) * (np.arange(_WINDOW)[:, None] + 0.5))
_WAVES /= np.linalg.norm(_WAVES, axis=0)  # of the discrete cosine transform
_KINDS = ["fine" if _WINDOW - 1 in frequency else "coarse" for frequency in itertools.product(range(_WINDOW), repeat=2)]
_VARYING = [*enumerate(_KINDS)][1:]  # patterns but the constant one
_NEAR = 0.02  # distance of the brightest pixels from the maximum, and of the darkest from the minimum (of the range)
_FLAT = 0.01  # largest difference of neighbors in flat areas (of the range)
_PLAIN = 1e-3  # variance of a line of one color (of the image's variance)
_RELATIVE = 1e-4  # energy of a pattern that is rounding or JPEG (of the image's variance)
_FAINT = 1e-8  # energy of color that is rounding (of the image's variance)
_FINEST = 1e-3  # second difference that is rounding (of the image's standard deviation)
_FLOOR = 1e-3  # change of a number that is rounding: of a share or a logarithm, or of the images' standard deviation
_LINE = 0.5  # change of the logarithm of a border's width that is a plain line more or less
_IN_PIXELS = ("mean", "lowest", "highest", "edges", "ends", "middle", "channel", "brightest color")  # beginnings
_TINY = 1e-37  # variance of a constant image: near the smallest float32, so that the unit of pixels does not matter
_VALUES = 2**19  # described at a time by one thread, so that threads are worth starting

_Floats = npt.NDArray[np.floating[Any]]


def describe_pixels(inputs: Tensor) -> Tensor | None:
    """Compute `pixel_statistics` of images; None for anything else, and for fewer than four pixels along an axis."""
    describable = inputs.ndim == 4 and inputs.shape[1] > 0 and min(inputs.shape[2:]) >= _WINDOW
    return pixel_statistics(inputs) if describable and inputs.is_floating_point() else None


def pixel_statistics(images: Tensor) -> Tensor:
    """Describe each image `(N, C, H, W)` by S numbers, which normalization scales or shifts only: float64 `(N, S)`."""
    images = images.detach().cpu()
    images = images if images.dtype == torch.float64 else images.float()
    parts = torch.split(images.contiguous(), max(1, _VALUES // math.prod(images.shape[1:])))
    described = torch_in_threads(lambda part: [values for _, values in _named_statistics(part.numpy())], parts)
    return torch.from_numpy(np.concatenate([np.array(numbers) for numbers in described], 1).T)


@cache
def pixel_names(channels: int) -> tuple[str, ...]:
    """Name each of the S numbers; several patterns, axes or pairs of channels share a name."""
    return tuple(name for name, _ in _named_statistics(np.zeros((1, channels, _WINDOW, _WINDOW), np.float32)))


def noise_floors(statistics: Tensor, channels: int) -> Tensor:
    """Compute how much each number in `pixel_statistics` `(N, S)` may change by rounding: float64 `(S,)`."""
    names = pixel_names(channels)
    in_pixels = torch.tensor([name.startswith(_IN_PIXELS) for name in names], device="cpu")
    contrast = statistics[:, names.index("contrast")].double().nanmedian().div(2).exp()
    unit = torch.maximum(contrast, statistics[:, names.index("mean")].double().abs().nanmedian() * _FLOOR)
    borders = torch.tensor([name == "plain border" for name in names], device="cpu")
    return torch.where(borders, _LINE, _FLOOR * torch.where(in_pixels, unit, 1.0))


@np.errstate(all="ignore")  # NaN and infinity stay
def _named_statistics(images: _Floats) -> list[tuple[str, _Floats]]:
    from lightning_anomaly._internal.compilation import announce_compilation
    from lightning_anomaly.scores import pixel_loops as loops  # late, as numba takes long to import

    announce_compilation(loops.measure_pixels)
    channels = images.shape[1]
    measured = loops.measure_pixels(images, _NEAR, _FLAT, _PLAIN, _WAVES.astype(images.dtype))
    brightness, axes, seconds, energies, colors = measured
    mean, variance, skewness, lowest, highest, darkest, brightest = brightness.T
    names = "mean", "lowest", "highest", "contrast", "skew", "brightest share", "darkest share"
    values = mean, lowest, highest, np.log(variance + _TINY), skewness, brightest, darkest
    numbers = [*zip(names, values, strict=True)]
    for axis, size in enumerate(images.shape[2:]):
        step, flat, first, middle, last, plainest, border = axes[:, axis].T
        numbers += [("edges", step), ("flat share", flat), (f"ends {axis}", first - last), ("middle", middle - mean)]
        numbers += [("plainest line", np.log(plainest + _RELATIVE * variance + _TINY))]
        numbers += [("plain border", np.log((border + 1) / size))]
    numbers += zip(("noise", "detail"), _pixel_grain(seconds, variance), strict=True)
    patterns = np.log(energies + _RELATIVE * variance[:, None, None] + _TINY)
    numbers += [(f"{kind} patterns", patterns[:, 0, place]) for place, kind in _VARYING]
    if channels > 1:
        numbers += [(f"{kind} color patterns", patterns[:, 1, place]) for place, kind in _VARYING]
        numbers += [(f"channel {channel}", colors[:, channel]) for channel in range(channels)]
        numbers += [("alike channels", alike) for alike in colors[:, channels:-2].T]
        numbers += [("color", np.log(colors[:, -2] + _FAINT * variance + _TINY))]
        numbers += [("brightest color", np.sqrt(colors[:, -1]))]
    return numbers


def _pixel_grain(second: _Floats, variance: _Floats) -> _Floats:
    """Compute noise and detail `(2, N)`: log of the 0.5 and the 0.9 quantile of second differences along all axes."""
    sizes, quantiles = np.abs(second, out=second), []
    for share in (0.5, 0.9):  # one at a time: NumPy has vectorized code for a single place only, six times as fast
        place = int(share * sizes.shape[1])
        sizes.partition(place, 1)
        quantiles.append(sizes[:, place].copy())
    return cast("_Floats", np.log(quantiles + _FINEST * np.sqrt(variance) + _TINY))
