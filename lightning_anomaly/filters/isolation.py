"""Find the samples that a filter isolates: those that lie farther out than the tail of the other samples explains.

A clustering finds clusters even if a filter is only sparse or heavy-tailed. This test has a known rate of false alarms.

Order the samples by their distance from the center of the densest half, `r_1 >= r_2 >= ...`. For every `k` up to
`rare_fraction * N`, compare the gap behind the `k` outermost samples with the tail of the others. Assume that the
distances follow a two-dimensional t distribution with `1 / h` degrees of freedom, with any center and scale. Its upper
quantile is `u(p) = sqrt((p ** (-2 h) - 1) / h)`. Then

- the normalized gaps `j * (r_j - r_(j+1))` are nearly independent and exponential, with means proportional to
  `p ** (-2 h) / u(p)` at `p = j / (N + 1)` (Renyi, "On the theory of order statistics", 1953; Matthys and Beirlant,
  "Estimating the extreme value index and high quantiles with exponential regression models", 2003). This gives the
  scale and, with the scale integrated out, the weight of every `h` given the data;
- a gap at least as wide as that behind the `k` outermost samples has probability `exp(-x)`, where `x` is `k` times the
  logarithm of the ratio of the tail probabilities at its two ends. As the scale is estimated from `n` gaps, the
  probability is `(1 + x / n) ** -n`.

The probability is averaged over `h` by these weights. It is computed once from all other gaps, which shows that a tight
group far out is no tail, and once from the gaps below the set, which scattered outliers cannot mask. The smaller one is
doubled. Size `k` gets a share of the false alarms in proportion to `1 / k`, as single samples are hardest to find.

Only the outer half of the samples is used, without those that lie on the center. A filter that is silent for most
samples, as a rectified one may be, is a censored sample: only its outermost values are seen. A set with fewer than 20
gaps below it is not tested.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FALSE_ALARMS = 0.005  # nominal rate, as a share of the filters; the measured rate is at most about twice that
_Array = npt.NDArray[np.float64]
_MIN_GAPS = 20  # gaps below a set that are needed to estimate the tail
# Tails that a filter may have: t distributions with 1 / shape degrees of freedom, from Gaussian (0) to Cauchy (1).
_SHAPES = np.array([1e-9, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0])
_LOG_PRIOR = np.log([0.75] + 10 * [0.025])  # of the shapes
_SILENT = 1e-9  # distances up to this count as zero, in units of the largest distance that no set contains
_ROUNDING = 1e-12  # distances up to this count as zero, in units of the largest distance
_STEPS = 4  # of the center; more change nothing


def isolated_samples(points: Tensor, rare_fraction: float, extremes: Tensor | None = None) -> Tensor:
    """Find the samples that each filter isolates by its points `(F, N, 2)`, at most a `rare_fraction`; bool `(F, N)`.

    `extremes` are the largest and smallest value of each map before rectification `(F, N, 2)`, which show what the two
    components of a rectified map hide. They are tested like points, and each test gets half of the false alarms.
    """
    max_size = int(rare_fraction * points.shape[1] * (1 + 1e-12))
    if not max_size or not len(points):
        return torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    views = [points.double().numpy()]
    with np.errstate(invalid="ignore"):  # NaN for filters with NaN or infinite values
        if extremes is not None:
            views.append(_isolation_deviations(extremes.double().numpy()))
        distances = [_isolation_distances(view) for view in views]
    isolated = [values >= isolation_borders(values, max_size, _FALSE_ALARMS / len(views)) for values in distances]
    return torch.from_numpy(np.any(isolated, axis=0))


def _isolation_distances(points: _Array) -> _Array:
    """Compute the distances `(F, N)` of points `(F, N, 2)` from the mean of the half of them that is closest to it.

    The mean is the silent point of a filter that is silent for more than half of the samples. It rotates with the
    points, and a few outliers move it as little as a median.
    """
    plane = np.ascontiguousarray(points).view(np.complex128)[..., 0]
    distances: _Array = np.abs(plane - plane.mean(1, keepdims=True))
    for _ in range(_STEPS):
        near = distances <= _lower_median(distances)
        distances = np.abs(plane - (plane * near).sum(1, keepdims=True) / near.sum(1, keepdims=True))
    return distances


def _isolation_deviations(values: _Array) -> _Array:
    """Center values `(F, N, 2)` at their medians and divide by the median absolute deviations; 0 where that is 0."""
    exponents = np.frexp(np.abs(values).max((1, 2), keepdims=True))[1]
    values = np.ldexp(values, -exponents)  # exact, and nothing overflows
    centered = values - _lower_median(values)
    spread = _lower_median(np.abs(centered))
    return np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 0)


def _lower_median(values: _Array) -> _Array:
    """Return the lower medians along axis 1, with that axis; NumPy's selection is ten times as fast as torch's."""
    middle = (values.shape[1] - 1) // 2
    return np.partition(values, middle, axis=1)[:, middle : middle + 1]


def isolation_borders(distances: _Array, max_size: int, level: float) -> _Array:
    """Find the distance `(F, 1)` of the innermost of up to `max_size` isolated samples; infinity if there are none."""
    # For S shapes and the gaps behind the M samples of the outer half, the farthest first.
    ranks, ks = np.arange(1, distances.shape[1] // 2 + 2), np.arange(1, max_size + 1)
    levels = level / (ks * (1 / ks).sum())
    exponents = 2 * _SHAPES * np.log((distances.shape[1] + 1) / ranks)[:, None]
    quantiles = np.sqrt(np.expm1(exponents) / _SHAPES)  # (M + 1, S)
    inverse_means = quantiles * np.exp(-exponents)  # of the normalized gaps (M + 1, S)
    log_sums = np.pad((exponents - np.log(quantiles)).cumsum(0), ((1, 0), (0, 0)))  # of the first means' logarithms

    ordered = -np.sort(-distances, axis=1)[:, : len(ranks)]
    usable = np.flatnonzero((ordered[:, 0] > 0) & (ordered[:, 0] < np.inf))
    ordered, borders = ordered[usable], np.full((len(distances), 1), np.inf)
    farthest, beyond = ordered[:, :1], ordered[:, [max_size]]
    radii = ordered / np.where(beyond > _ROUNDING * farthest, beyond, farthest)
    loud = radii[:, 1:] > np.maximum(_SILENT, _ROUNDING * radii[:, :1])
    last = loud.sum(1, keepdims=True)  # the innermost sample that is used
    heights = np.maximum(radii - np.take_along_axis(radii, last, 1), 0)
    gaps = ranks[:-1] * (heights[:, :-1] - heights[:, 1:])  # normalized (F, M)

    # Number of gaps below the set, and their sum in units of the expected gaps (F, S).
    n_gaps = (gaps[:, max_size:] > _SILENT).sum(1, keepdims=True)
    # Not `@`: NumPy's threads keep spinning after a matrix product of more than about 800 samples.
    below = np.einsum("fm,ms->fs", gaps[:, max_size:], inverse_means[max_size:-1])
    total = np.einsum("fm,ms->fs", gaps[:, :max_size], inverse_means[:max_size]) + below
    start, log_prior = quantiles[last[:, 0]], _LOG_PRIOR - log_sums[last[:, 0]]
    count = np.zeros((len(usable), 1), np.int64)  # isolated samples of each filter
    for k in range(max_size, 0, -1):
        gap = gaps[:, [k - 1]]
        p_value = np.ones((len(usable), 1))
        for n_others, scaled, log_means in (
            (last - 1, total - gap * inverse_means[k - 1], log_sums[k] - log_sums[k - 1]),  # all other gaps
            (last - k, below, log_sums[k]),  # those below the set
        ):
            n, scaled = np.maximum(n_others, 1), np.maximum(scaled, _SILENT)
            log_weights = log_prior + log_means - n * np.log(scaled)
            weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
            outer, inner = (_SHAPES * (start + heights[:, [i]] * n / scaled) ** 2 for i in (k - 1, k))
            log_ratio = k * (np.log1p(outer) - np.log1p(inner)) / (2 * _SHAPES)
            p_values = np.exp(-n * np.log1p(log_ratio / n))
            p_value = np.minimum(p_value, (weights * p_values).sum(1, keepdims=True) / weights.sum(1, keepdims=True))
        count = np.maximum(count, k * ((n_gaps >= _MIN_GAPS) & (2 * p_value <= levels[k - 1])))
        n_gaps += gap > _SILENT
        below += gap * inverse_means[k - 1]
    with_infinity = np.pad(ordered, ((0, 0), (1, 0)), constant_values=np.inf)
    borders[usable] = np.take_along_axis(with_infinity, count, 1)
    return borders
