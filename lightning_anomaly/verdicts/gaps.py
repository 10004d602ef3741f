"""How likely the gaps behind a filter's outermost samples are: the compiled part of `isolated_samples`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_anomaly.numba_jit import compile_loop

_STEPS = 4  # of the centre; more change nothing
_MIN_GAPS = 20  # gaps below a set without which its tail is not judged
# Tails that a filter may have: t distributions with 1 / shape degrees of freedom, from Gaussian (0) to Cauchy (1).
_SHAPES = np.array([1e-9, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0])
_LOG_PRIOR = np.log([0.75] + 10 * [0.025])  # of their weights before anything is seen
_SILENT = 1e-9  # distances that are zero but for rounding, in units of the largest that no set holds
_ROUNDING = 1e-12  # the same, in units of the largest

_Array = npt.NDArray[np.float64]


def centre_distances(points: _Array) -> _Array:
    """Compute distances `(F, N)` of points `(F, N, 2)` from the mean of the half of them that lies closest to it.

    The mean is found by iteration. It is the silent point of a filter that is silent for more than half of the samples,
    turns with the points, and is moved by a few outliers as little as a median.
    """
    distances = np.full(points.shape[:2], np.nan)
    xs, ys = np.ascontiguousarray(np.moveaxis(points, 2, 0))
    _centre_distances(xs, ys, distances)
    return distances


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _centre_distances(xs: _Array, ys: _Array, distances: _Array) -> None:
    for f in range(len(xs)):
        x, y, squared = xs[f], ys[f], distances[f]
        cx, cy = x.mean(), y.mean()
        if not np.isfinite(cx + cy):
            continue
        for step in range(_STEPS + 1):
            for i in range(x.size):
                dx, dy = x[i] - cx, y[i] - cy
                squared[i] = dx * dx + dy * dy
            if step == _STEPS:
                break
            median = _lower_median(squared.copy())
            inner, sx, sy = 0.0, 0.0, 0.0
            for i in range(x.size):
                near = squared[i] <= median
                inner += 1.0 if near else 0.0
                sx += x[i] if near else 0.0
                sy += y[i] if near else 0.0
            cx, cy = sx / inner, sy / inner
        for i in range(x.size):
            squared[i] = np.sqrt(squared[i])


@compile_loop()
def _lower_median(values: _Array) -> float:
    """Hoare's selection, which reorders the values; numba's takes three times as long."""
    first, last, middle = 0, values.size - 1, (values.size - 1) // 2
    while first < last:
        pivot, i, j = values[middle], first, last
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < middle:
            first = i
        if i > middle:
            last = j
    median: float = values[middle]
    return median


def find_borders(distances: _Array, sizes: int, level: float) -> _Array:
    """Find the distance `(F, 1)` of the innermost sample that each filter sets apart, infinity if it sets none apart.

    See `isolated_samples`; `distances` are `(F, N)`, `sizes` the most that are set apart, `level` the false alarms.
    """
    samples, k = distances.shape[1], np.arange(1, sizes + 1)
    levels, borders = level / (k * (1 / k).sum()), np.full((len(distances), 1), np.inf)
    # What tails of each shape expect of the outer half of M samples, the farthest first, `(shapes, M + 1)`: quantiles,
    # the inverse means of the normalized gaps, and the sums of the logarithms of the first 0 to M means.
    exponent = 2 * _SHAPES[:, None] * np.log((samples + 1) / np.arange(1, samples // 2 + 2))
    quantiles = np.sqrt(np.expm1(exponent) / _SHAPES[:, None])
    inverse_means = quantiles * np.exp(-exponent)
    log_sums = np.pad((exponent - np.log(quantiles)).cumsum(1), ((0, 0), (1, 0)))[:, :-1]
    _find_borders(np.sort(distances), levels, _SHAPES, _LOG_PRIOR, inverse_means, log_sums, quantiles, borders)
    return borders


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _find_borders(
    ordered: _Array,
    levels: _Array,
    shapes: _Array,
    log_prior: _Array,
    inverse_means: _Array,
    log_sums: _Array,
    quantiles: _Array,
    borders: _Array,
) -> None:
    """Fill in `borders`, from sorted distances, the probability up to which k samples are set apart, and tails."""
    sizes, most = levels.size, quantiles.shape[1] - 1
    gaps, weights = np.empty(most), np.empty(shapes.size)
    every, below = np.empty(shapes.size), np.empty(shapes.size)  # sums of gaps in units of those expected
    for f in range(len(ordered)):
        row = ordered[f, ::-1]
        if not 0.0 < row[0] < np.inf:
            continue
        unit = row[sizes] if row[sizes] > _ROUNDING * row[0] else row[0]  # next to the farthest, all may look silent
        last = 0  # the innermost sample used that is not silent
        while last < most and row[last + 1] > max(_SILENT * unit, _ROUNDING * row[0]):
            last += 1
        positive = 0
        for j in range(last):
            gaps[j] = (row[j] - row[j + 1]) / unit * (j + 1)
            positive += j >= sizes and gaps[j] > _SILENT
        for h in range(shapes.size):
            below[h] = 0.0
            for j in range(sizes, last):
                below[h] += gaps[j] * inverse_means[h, j]
            every[h] = below[h]
            for j in range(min(sizes, last)):
                every[h] += gaps[j] * inverse_means[h, j]
        for k in range(min(sizes, last), 0, -1):
            gap = gaps[k - 1]
            if positive >= _MIN_GAPS:
                smaller = 1.0
                for others in (True, False):  # all other gaps, or those below
                    number = float(max(last - (1 if others else k), 1))
                    for h in range(shapes.size):
                        known = log_sums[h, k] - log_sums[h, k - 1] if others else log_sums[h, k]
                        total = every[h] - gap * inverse_means[h, k - 1] if others else below[h]
                        weights[h] = log_prior[h] - log_sums[h, last] + known - number * np.log(max(total, _SILENT))
                    largest = weights.max()
                    probability, norm = 0.0, 0.0
                    for h in range(shapes.size):
                        total = every[h] - gap * inverse_means[h, k - 1] if others else below[h]
                        scale = number / max(total, _SILENT) / unit
                        outside = quantiles[h, last] + (row[k - 1] - row[last]) * scale
                        inside = quantiles[h, last] + (row[k] - row[last]) * scale
                        x = np.log1p(shapes[h] * outside * outside) - np.log1p(shapes[h] * inside * inside)
                        weight = np.exp(weights[h] - largest)
                        norm += weight
                        probability += weight * np.exp(-number * np.log1p(k * x / (2.0 * shapes[h] * number)))
                    smaller = min(smaller, probability / norm)
                if 2.0 * smaller <= levels[k - 1]:
                    borders[f, 0] = row[k - 1]
                    break
            positive += gap > _SILENT
            for h in range(shapes.size):
                below[h] += gap * inverse_means[h, k - 1]
