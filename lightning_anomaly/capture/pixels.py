"""Describe images, signals and volumes by statistics of their pixels, without the network."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = 4  # side of the blocks in which patterns are measured (pixels)
_NEAR = 0.02  # distance of the brightest pixels from the maximum, and of the darkest from the minimum (of the range)
_FLAT = 0.01  # largest difference of neighbours in flat areas (of the range)
_PLAIN = 1e-3  # variance of a line of one colour (of the image's variance)
_RELATIVE = 1e-4  # energy of a pattern that is rounding or JPEG (of the image's variance)
_FAINT = 1e-8  # energy of colour that is rounding (of the image's variance)
_FINEST = 1e-3  # second difference that is rounding (of the image's standard deviation)
_FLOOR = 1e-3  # change of a number that is rounding: of a share or a logarithm, or of the images' standard deviation
_LINE = 0.5  # change of the logarithm of a border's width that is a plain line more or less
_IN_PIXELS = ("mean", "lowest", "highest", "edges", "ends", "middle", "channel", "brightest colour")  # beginnings
_TINY = 1e-37  # variance of a constant image: near the smallest float32, so that the unit of pixels does not matter
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def describes_pixels(shape: torch.Size) -> bool:
    """Return whether inputs `(N, C, ...)` have pixels to describe: one to three axes of at least four."""
    return 3 <= len(shape) <= 5 and shape[1] > 0 and min(shape[2:]) >= _WINDOW


def pixel_statistics(images: Tensor) -> Tensor:
    """Describe each image by numbers `(N, S)`: brightness, contrast, edges, border, grain, patterns, places, colour.

    Images are `(N, C, H, W)`, signals `(N, C, L)` and volumes `(N, C, D, H, W)`. Normalization of the images changes
    each number by a factor or a constant only. Colour is the difference of the channels from their mean, grey.
    """
    images = images if images.dtype == torch.float64 else images.float()
    with torch.autocast(images.device.type, enabled=False):  # in 16 bits, bytes overflow
        return torch.stack([values for _, values in _describe(images)], 1)


@cache
def pixel_names(channels: int, axes: int) -> tuple[str, ...]:
    """Name each of the S numbers; several patterns, axes or pairs of channels share a name."""
    return tuple(
        name for name, _ in _describe(torch.zeros(1, channels, *[_WINDOW] * axes, dtype=torch.float32, device="cpu"))
    )


def noise_floors(statistics: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Compute how much each number in `pixel_statistics` `(N, S)` may change by rounding: float64 `(S,)`.

    The images have the shape `(C, ...)`. Numbers in units of pixels change by a share of their typical contrast.
    """
    names = pixel_names(shape[0], len(shape) - 1)
    in_pixels = torch.tensor([name.startswith(_IN_PIXELS) for name in names], device="cpu")
    contrast = statistics[:, names.index("contrast")].double().nanmedian().div(2).exp()
    unit = torch.maximum(contrast, statistics[:, names.index("mean")].double().abs().nanmedian() * _FLOOR)
    borders = torch.tensor([name == "plain border" for name in names], device="cpu")
    return torch.where(borders, _LINE, _FLOOR * torch.where(in_pixels, unit, 1.0))


def _describe(images: Tensor) -> list[tuple[str, Tensor]]:
    channels, axes = images.shape[1], range(1, images.ndim - 1)
    grey = images.mean(1)
    pixels = grey.flatten(1)
    mean = pixels.mean(1)
    centered = pixels - mean[:, None]
    variance = centered.square().mean(1)
    lowest, highest = pixels.amin(1), pixels.amax(1)  # `aminmax` takes ten times as long
    span = (highest - lowest)[:, None]
    numbers = [
        ("mean", mean),
        ("lowest", lowest),
        ("highest", highest),
        ("contrast", (variance + _TINY).log()),
        ("skew", (centered / (variance.sqrt() + _TINY)[:, None]).pow(3).mean(1)),
        ("brightest share", (pixels >= highest[:, None] - _NEAR * span).to(pixels).mean(1)),
        ("darkest share", (pixels <= lowest[:, None] + _NEAR * span).to(pixels).mean(1)),
    ]
    for axis in axes:
        steps = grey.diff(dim=axis).abs().flatten(1)
        first, middle, last = (part.flatten(1).mean(1) for part in grey.tensor_split(3, axis))
        numbers += [("edges", steps.amax(1)), ("flat share", (steps <= _FLAT * span).to(pixels).mean(1))]
        numbers += [(f"ends {axis - 1}", first - last), ("middle", middle - mean)]
    if len(axes) == 2:
        for axis in axes:
            lines = grey.var(3 - axis, unbiased=False)
            numbers += [("plainest line", (lines.amin(1) + _RELATIVE * variance + _TINY).log())]
            numbers += [("plain border", _border((2 - lines / (_PLAIN * variance[:, None] + _TINY)).clamp(0, 1)))]
    numbers += zip(("noise", "detail"), _grain(grey, variance).T, strict=True)
    numbers += _pattern_energies(grey[:, None], variance, "patterns")
    if channels > 1:
        colour = images - grey[:, None]
        varied = images.flatten(2) - images.flatten(2).mean(2, keepdim=True)
        varied = varied / (varied.norm(dim=2, keepdim=True) + _TINY)
        numbers += _pattern_energies(colour, variance, "colour patterns")
        numbers += [(f"channel {channel}", colour[:, channel].flatten(1).mean(1)) for channel in range(channels)]
        numbers += [("alike channels", alike) for alike in (varied[:, 1:] * varied[:, :-1]).sum(2).T]
        faint = _FAINT * variance + _TINY
        numbers += [("colour", (colour.flatten(1).square().mean(1) + faint).log())]
        numbers += [("brightest colour", colour.square().mean(1).flatten(1).amax(1).sqrt())]
    return numbers


def _border(plain: Tensor) -> Tensor:
    """Compute the log of the share of lines, plain from 0 to 1 `(N, L)`, before the first that is not, and after."""
    first, last = (side.cumprod(1).sum(1) for side in (plain, plain.flip(1)))
    return ((first + last + 1) / plain.shape[1]).log()


def _grain(grey: Tensor, variance: Tensor) -> Tensor:
    """Compute noise and detail `(N, 2)`: log of the 0.5 and the 0.9 quantile of second differences along all axes."""
    for axis in range(1, grey.ndim):
        grey = grey.diff(n=2, dim=axis)
    sizes = grey.abs().flatten(1)
    places = [int(share * sizes.shape[1]) for share in (0.5, 0.9)]
    if sizes.device.type == "cpu":  # NumPy selects without sorting
        quantiles = torch.from_numpy(np.partition(sizes.numpy(), places, 1)[:, places])
    else:
        quantiles = sizes.sort(1).values[:, places]
    return (quantiles + _FINEST * variance.sqrt()[:, None] + _TINY).log()


def _pattern_energies(images: Tensor, variance: Tensor, name: str) -> list[tuple[str, Tensor]]:
    """Compute the log of the mean energy `(N,)` of each local pattern in images `(N, C, ...)`, fine or coarse.

    The patterns are those of the discrete cosine transform of blocks of 4 pixels along each axis, but the constant one.
    """
    n, channels, *sides = images.shape
    kernels = _patterns(len(sides)).to(images)
    response = _CONVOLUTIONS[len(sides)](images.flatten(0, 1)[:, None], kernels, stride=_WINDOW)
    energies = response.square().flatten(2).mean(2).view(n, channels, -1).mean(1)
    energies = (energies + _RELATIVE * variance[:, None] + _TINY).log()
    frequencies = list(itertools.product(range(_WINDOW), repeat=len(sides)))[1:]
    sizes = ["fine" if _WINDOW - 1 in frequency else "coarse" for frequency in frequencies]
    return [(f"{size} {name}", energy) for size, energy in zip(sizes, energies.T, strict=True)]


@cache
def _patterns(axes: int) -> Tensor:
    """Compute the patterns as kernels of a convolution, float64 `(P, 1, 4, ...)`."""
    place = torch.arange(_WINDOW, dtype=torch.float64, device="cpu")
    waves = (math.pi / _WINDOW * place[:, None] * (place + 0.5)).cos()
    waves /= waves.norm(dim=1, keepdim=True)
    kernels = waves
    for _ in range(axes - 1):
        kernels = torch.einsum("p...,qx->pq...x", kernels, waves).flatten(0, 1)
    return kernels[1:, None]
