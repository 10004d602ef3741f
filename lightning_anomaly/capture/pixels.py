"""Describe images, signals and volumes by plain statistics of their pixels, whatever the network makes of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = 4  # pixels along each side of a block, in which patterns are measured
_NEAR = 0.02  # of an image's own range, within which a pixel is as bright or as dark as any
_FLAT = 0.01  # of that range, up to which neighbours are alike
_RELATIVE = 1e-4  # of the variance of an image, below which the energy of a pattern is rounding or JPEG
_FAINT = 1e-8  # of that variance, below which colour is rounding
_FINEST = 1e-3  # of the standard deviation of an image, likewise of a second difference
_TINY = 1e-37  # the variance of an image without any: the smallest float32, whatever the unit of pixels
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def describes_pixels(shape: torch.Size) -> bool:
    """Return whether inputs of a shape `(N, C, ...)` have pixels to describe: one to three axes of four or more."""
    return 3 <= len(shape) <= 5 and shape[1] > 0 and min(shape[2:]) >= _WINDOW


def pixel_statistics(images: Tensor) -> Tensor:
    """Describe each image by S numbers: of brightness, contrast, edges, grain, local patterns, places and colour.

    They are `(N, S)`, named by `pixel_names`; energies of patterns are logarithms. Images are
    `(N, C, H, W)`, signals `(N, C, L)` or volumes `(N, C, D, H, W)`, see `describes_pixels`. None of the numbers
    depends on the unit of the pixels but by a factor or a constant, so it does not matter how images are normalized.
    Colour is what channels differ in from their mean, grey.
    """
    images = images if images.dtype == torch.float64 else images.float()
    with torch.autocast(images.device.type, enabled=False):  # in 16 bits, bytes overflow
        return _describe(images)


def _describe(images: Tensor) -> Tensor:
    channels, sides = images.shape[1], images.shape[2:]
    grey = images.mean(1)
    pixels = grey.flatten(1)
    mean = pixels.mean(1)
    centered = pixels - mean[:, None]
    variance = centered.square().mean(1)
    lowest, highest = pixels.amin(1), pixels.amax(1)  # together they take ten times as long
    span = (highest - lowest)[:, None]
    found = [
        mean,
        lowest,
        highest,
        (variance + _TINY).log(),
        (centered / (variance.sqrt() + _TINY)[:, None]).pow(3).mean(1),
        (pixels >= highest[:, None] - _NEAR * span).to(pixels).mean(1),
        (pixels <= lowest[:, None] + _NEAR * span).to(pixels).mean(1),
    ]
    for axis in range(1, len(sides) + 1):
        steps = grey.diff(dim=axis).abs().flatten(1)
        first, middle, last = (part.flatten(1).mean(1) for part in grey.tensor_split(3, axis))
        found += [steps.amax(1), (steps <= _FLAT * span).to(pixels).mean(1), first - last, middle - mean]
    found += [*_grain(grey, variance).T, *_pattern_energies(grey[:, None], variance).T]
    if channels > 1:
        colour = images - grey[:, None]
        varied = images.flatten(2) - images.flatten(2).mean(2, keepdim=True)
        varied = varied / (varied.norm(dim=2, keepdim=True) + _TINY)
        found += [*_pattern_energies(colour, variance).T]
        found += [*colour.flatten(2).mean(2).T, *(varied[:, 1:] * varied[:, :-1]).sum(2).T]
        faint = _FAINT * variance + _TINY
        found += [(colour.flatten(1).square().mean(1) + faint).log(), colour.square().mean(1).flatten(1).amax(1).sqrt()]
    return torch.stack(found, 1)


def pixel_names(channels: int, axes: int) -> list[str]:
    """Name each of the S numbers; those of several patterns, axes or pairs of channels have the same name."""
    found = ["mean", "lowest", "highest", "contrast", "skew", "brightest share", "darkest share"]
    for axis in range(axes):
        found += ["edges", "flat share", f"ends {axis}", "middle"]
    patterns = ["fine" if _WINDOW - 1 in place else "coarse" for place in _pattern_places(axes)]
    found += ["noise", "detail", *(f"{size} patterns" for size in patterns)]
    if channels > 1:
        found += [f"{size} colour patterns" for size in patterns]
        found += [f"channel {channel}" for channel in range(channels)]
        found += ["alike channels"] * (channels - 1) + ["colour", "brightest colour"]
    return found


def _grain(grey: Tensor, variance: Tensor) -> Tensor:
    """Log of the median and of the 0.9 quantile of second differences along all axes `(N, 2)`: noise, and detail."""
    for axis in range(1, grey.ndim):
        grey = grey.diff(n=2, dim=axis)
    sizes = grey.abs().flatten(1)
    # NumPy sorts ten times as fast as torch on a CPU.
    ordered = torch.from_numpy(np.sort(sizes.numpy(), 1)) if sizes.device.type == "cpu" else sizes.sort(1).values
    places = [int(share * ordered.shape[1]) for share in (0.5, 0.9)]
    return (ordered[:, places] + _FINEST * variance.sqrt()[:, None] + _TINY).log()


def _pattern_places(axes: int) -> list[tuple[int, ...]]:
    """Frequencies of the local patterns along each axis; all but the constant one."""
    return list(itertools.product(range(_WINDOW), repeat=axes))[1:]


def _pattern_energies(images: Tensor, variance: Tensor) -> Tensor:
    """Log of the mean energy of each local pattern of images `(N, C, ...)`, over channels and places: `(N, P)`.

    The patterns are those of a discrete cosine transform of blocks of 4 pixels along each axis.
    """
    n, channels, *sides = images.shape
    place = torch.arange(_WINDOW, dtype=torch.float64, device="cpu")
    waves = (math.pi / _WINDOW * place[:, None] * (place + 0.5)).cos()
    waves /= waves.norm(dim=1, keepdim=True)
    kernels = waves
    for _ in sides[1:]:
        kernels = torch.einsum("p...,qx->pq...x", kernels, waves).flatten(0, 1)
    kernels = kernels[1:, None].to(images)
    response = _CONVOLUTIONS[len(sides)](images.flatten(0, 1)[:, None], kernels, stride=_WINDOW)
    energies = response.square().flatten(2).mean(2).view(n, channels, -1).mean(1)
    return (energies + _RELATIVE * variance[:, None] + _TINY).log()
