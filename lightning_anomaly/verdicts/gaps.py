"""Test the gaps behind a filter's outermost samples; `isolated_samples` explains the test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MIN_GAPS = 20  # gaps below a set that are needed to estimate the tail
# Tails that a filter may have: t distributions with 1 / shape degrees of freedom, from Gaussian (0) to Cauchy (1).
_SHAPES = np.array([1e-9, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0])
_LOG_PRIOR = np.log([0.75] + 10 * [0.025])  # of the shapes
_SILENT = 1e-9  # distances up to this count as zero, in units of the largest distance that no set contains,
_ROUNDING = 1e-12  # and up to this in units of the largest distance

_Array = npt.NDArray[np.float64]


def find_borders(distances: _Array, sizes: int, level: float) -> _Array:
    """Find the distance `(F, 1)` of the innermost isolated sample of each filter; infinity if none is isolated.

    `distances` are `(F, N)`, `sizes` is the largest number of isolated samples, `level` the rate of false alarms.
    """
    # S shapes; the outer half of the N samples, M, the farthest first.
    ranks, ks = np.arange(1, distances.shape[1] // 2 + 2), np.arange(1, sizes + 1)
    levels = level / (ks * (1 / ks).sum())
    exponents = 2 * _SHAPES * np.log((distances.shape[1] + 1) / ranks)[:, None]
    quantiles = np.sqrt(np.expm1(exponents) / _SHAPES)  # (M + 1, S)
    inverse_means = quantiles * np.exp(-exponents)  # of the normalized gaps (M + 1, S)
    log_sums = np.pad((exponents - np.log(quantiles)).cumsum(0), ((1, 0), (0, 0)))  # of the first means' logarithms

    ordered = -np.sort(-distances, axis=1)[:, : len(ranks)]
    usable = np.flatnonzero((ordered[:, 0] > 0) & (ordered[:, 0] < np.inf))
    ordered, borders = ordered[usable], np.full((len(distances), 1), np.inf)
    farthest, beyond = ordered[:, :1], ordered[:, [sizes]]
    radii = ordered / np.where(beyond > _ROUNDING * farthest, beyond, farthest)
    loud = radii[:, 1:] > np.maximum(_SILENT, _ROUNDING * radii[:, :1])
    last = loud.sum(1, keepdims=True)  # the innermost sample that is used
    heights = np.maximum(radii - np.take_along_axis(radii, last, 1), 0)
    gaps = ranks[:-1] * (heights[:, :-1] - heights[:, 1:])  # normalized (F, M)

    # Of the samples below the set: number of gaps, and their sum in units of the expected gaps (F, S).
    n_gaps = (gaps[:, sizes:] > _SILENT).sum(1, keepdims=True)
    below = gaps[:, sizes:] @ inverse_means[sizes:-1]
    total = gaps[:, :sizes] @ inverse_means[:sizes] + below
    start, log_prior = quantiles[last[:, 0]], _LOG_PRIOR - log_sums[last[:, 0]]
    isolated = np.zeros((len(usable), 1), np.int64)
    for k in range(sizes, 0, -1):
        gap = gaps[:, [k - 1]]
        p_value = np.ones((len(usable), 1))
        for number, scaled, log_means in (
            (last - 1, total - gap * inverse_means[k - 1], log_sums[k] - log_sums[k - 1]),  # all other gaps
            (last - k, below, log_sums[k]),  # those below the set
        ):
            n, scaled = np.maximum(number, 1), np.maximum(scaled, _SILENT)
            log_weights = log_prior + log_means - n * np.log(scaled)
            weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
            outer, inner = (_SHAPES * (start + heights[:, [i]] * n / scaled) ** 2 for i in (k - 1, k))
            log_ratio = k * (np.log1p(outer) - np.log1p(inner)) / (2 * _SHAPES)
            p_values = np.exp(-n * np.log1p(log_ratio / n))
            p_value = np.minimum(p_value, (weights * p_values).sum(1, keepdims=True) / weights.sum(1, keepdims=True))
        isolated = np.maximum(isolated, k * ((n_gaps >= _MIN_GAPS) & (2 * p_value <= levels[k - 1])))
        n_gaps += gap > _SILENT
        below += gap * inverse_means[k - 1]
    with_infinity = np.pad(ordered, ((0, 0), (1, 0)), constant_values=np.inf)
    borders[usable] = np.take_along_axis(with_infinity, isolated, 1)
    return borders
