"""Compiled loops that measure the pixels of images; plain torch takes three times as long to pass them through memory.

Images are `(N, C, M)`, grey images `(N, M)`, float32 or float64, row by row. An axis of `size` pixels divides the M
pixels into `(outer, size, inner)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_anomaly.numba_jit import compile_loop

_Floats = npt.NDArray[np.floating[Any]]
_Doubles = npt.NDArray[np.float64]
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}


@compile_loop(**_OPTIONS)
def brightness(images: _Floats, grey: _Floats, near: float) -> _Doubles:
    """Fill in grey images, and measure them `(N, 7)`.

    Mean, variance, skewness, minimum, maximum, and the shares of pixels `near` the minimum and the maximum, of the
    range.
    """
    found = np.empty((len(images), 7))
    for n in range(len(images)):
        plane = grey[n]
        plane[:] = images[n, 0]
        for c in range(1, images.shape[1]):
            plane += images[n, c]
        plane /= images.shape[1]
        total, lowest, highest = 0.0, plane[0], plane[0]
        for i in range(plane.size):
            total += plane[i]
            lowest = min(lowest, plane[i])
            highest = max(highest, plane[i])
        mean, low, high = total / plane.size, lowest + near * (highest - lowest), highest - near * (highest - lowest)
        squares, cubes, dark, bright = 0.0, 0.0, 0, 0
        for i in range(plane.size):
            centered = plane[i] - mean
            squares += centered * centered
            cubes += centered * centered * centered
            dark += plane[i] <= low
            bright += plane[i] >= high
        variance = squares / plane.size
        skewness = cubes / plane.size / variance**1.5 if variance > 0 else 0 * total
        found[n, 0], found[n, 1], found[n, 2], found[n, 3], found[n, 4] = mean, variance, skewness, lowest, highest
        found[n, 5], found[n, 6] = dark / plane.size, bright / plane.size
    return found


@compile_loop(**_OPTIONS)
def along_axis(grey: _Floats, size: int, inner: int, flat: _Doubles) -> tuple[_Doubles, _Doubles, _Doubles]:
    """Measure steps along an axis, the largest and the share of those up to `flat` `(N, 2)`, and what lies across it.

    That are the means and the variances of the pixels at each place of the axis, `(N, size)` each.
    """
    outer = grey.shape[1] // (size * inner)
    steps, means, variances = np.zeros((len(grey), 2)), np.zeros((len(grey), size)), np.zeros((len(grey), size))
    for n in range(len(grey)):
        plane, limit, largest, few = grey[n], flat[n], 0.0, 0
        for o in range(outer):
            for i in range(size):
                total = 0.0
                for k in range((o * size + i) * inner, (o * size + i + 1) * inner):
                    total += plane[k]
                means[n, i] += total / (outer * inner)
        for o in range(outer):
            for i in range(size):
                first, mean, squares = (o * size + i) * inner, means[n, i], 0.0
                for k in range(first, first + inner):
                    squares += (plane[k] - mean) * (plane[k] - mean)
                variances[n, i] += squares / (outer * inner)
            for k in range(o * size * inner, (o * size + size - 1) * inner):
                step = abs(plane[k + inner] - plane[k])
                largest = max(largest, step)
                few += step <= limit
        steps[n, 0], steps[n, 1] = largest, few / (outer * (size - 1) * inner)
    return steps, means, variances


@compile_loop(**_OPTIONS)
def second_differences(grey: _Floats, size: int, inner: int) -> _Floats:
    """Compute the second differences along an axis `(N, outer * (size - 2) * inner)`."""
    outer, row = grey.shape[1] // (size * inner), (size - 2) * inner
    found = np.empty((len(grey), outer * row), grey.dtype)
    for n in range(len(grey)):
        for o in range(outer):
            first = grey[n, o * size * inner :]
            second, third = first[inner:], first[2 * inner :]
            for k in range(row):
                found[n, o * row + k] = (third[k] - second[k]) - (second[k] - first[k])
    return found


@compile_loop(**_OPTIONS)
def pattern_energies(images: _Floats, width: int, waves: _Floats) -> _Doubles:
    """Compute the mean energies of patterns in square blocks of grey images and of their colour `(N, 2, 16)`.

    A pattern is the product of two of the `waves` `(4, 4)`, whose columns are one block high and wide. They have the
    type of the images, `width` is that of an image.
    """
    channels, side = images.shape[1], len(waves)
    rows, columns = images.shape[2] // width // side, width // side
    found = np.zeros((len(images), 2, side, side))
    # Pixels at the same place of all blocks follow each other, so that sums run over blocks as vectors.
    planes = np.empty((channels + 1, side, side, rows * columns), images.dtype)
    across = np.empty((side, rows * columns), images.dtype)
    for n in range(len(images)):
        grey = planes[channels]
        grey[:] = 0
        for c in range(channels):
            for y in range(side):
                for x in range(side):
                    place = planes[c, x, y]
                    for row in range(rows):
                        first = (row * side + y) * width + x
                        for column in range(columns):
                            place[row * columns + column] = images[n, c, first + column * side]
            grey += planes[c]
        grey /= channels
        for c in range(channels + 1):
            plane, kind, share = planes[c], 0, 1
            if c < channels:
                plane -= grey
                kind, share = 1, channels
            for k in range(side):
                for x in range(side):
                    _weighted_sum(plane[x], waves[:, k], across[x])
                for m in range(side):
                    found[n, kind, k, m] += _energy(across, waves[:, m]) / share
        found[n] /= rows * columns
    return found.reshape(len(images), 2, -1)


@compile_loop(**_OPTIONS)
def _weighted_sum(rows: _Floats, weights: _Floats, total: _Floats) -> None:
    """Write the weighted sum of four rows `(4, B)` into `total` `(B,)`."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for i in range(total.size):
        total[i] = weights[0] * a[i] + weights[1] * b[i] + weights[2] * c[i] + weights[3] * d[i]


@compile_loop(**_OPTIONS)
def _energy(rows: _Floats, weights: _Floats) -> float:
    """Return the sum of the squares of the weighted sum of four rows `(4, B)`."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    energy = rows.dtype.type(0)
    for i in range(a.size):
        value = weights[0] * a[i] + weights[1] * b[i] + weights[2] * c[i] + weights[3] * d[i]
        energy += value * value
    return float(energy)


@compile_loop(**_OPTIONS)
def colours(images: _Floats, grey: _Floats) -> tuple[_Doubles, _Doubles, _Doubles]:
    """Measure colour, the difference from grey.

    Its means in each channel `(N, C)`, the correlations of neighbouring channels `(N, C - 1)`, and the mean and the
    largest energy of a pixel's colour `(N, 2)`.
    """
    channels, size = images.shape[1:]
    means = np.zeros((len(images), channels))
    alike, energies = np.zeros((len(images), channels - 1)), np.empty((len(images), 2))
    for n in range(len(images)):
        image, plane, total, largest = images[n], grey[n], 0.0, 0.0
        for i in range(size):
            energy = 0.0
            for c in range(channels):
                colour = image[c, i] - plane[i]
                energy += colour * colour
            total += energy
            largest = max(largest, energy)
        energies[n, 0], energies[n, 1] = total / (size * channels), largest / channels
        norm = 0.0
        for c in range(channels):
            before, mean, mean_before = image[c - 1], image[c].mean(), image[c - 1].mean()
            squares, products, colour = 0.0, 0.0, 0.0
            for i in range(size):
                centered = image[c, i] - mean
                colour += image[c, i] - plane[i]
                squares += centered * centered
                products += centered * (before[i] - mean_before)
            means[n, c] = colour / size
            both, norm = norm * np.sqrt(squares), np.sqrt(squares)
            if c and not both <= 0:  # NaN stays
                alike[n, c - 1] = products / both
    return means, alike, energies
