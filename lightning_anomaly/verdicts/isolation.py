"""Find the samples that a filter isolates: those that lie farther out than the tail of the other samples explains.

A clustering always finds clusters, also where a filter is only sparse or heavy-tailed. This test has a known rate of
false alarms instead.

Order the samples by their distance from the centre of the densest half, `r_1 >= r_2 >= ...`. For every `k` up to
`rare_fraction * N`, compare the gap behind the `k` outermost samples with the tail of the others. Assume that the
distances follow a two-dimensional t distribution with `1 / h` degrees of freedom, with any centre and scale. Its upper
quantile is `u(p) = sqrt((p ** (-2 h) - 1) / h)`. Then

- the normalized gaps `j * (r_j - r_(j+1))` are nearly independent and exponential, with means proportional to
  `p ** (-2 h) / u(p)` at `p = j / (N + 1)` (Renyi, "On the theory of order statistics", 1953; Matthys and Beirlant,
  "Estimating the extreme value index and high quantiles with exponential regression models", 2003). This gives the
  scale and, with the scale integrated out, the weight of every `h` given the data;
- a gap at least as wide as that behind the `k` outermost samples has probability `exp(-x)`, where `x` is `k` times the
  logarithm of the ratio of the tail probabilities at its two ends. As the scale is estimated from `n` gaps, the
  probability is `(1 + x / n) ** -n`.

The probability is averaged over `h` by these weights. It is computed twice, and the smaller one is doubled: from all
other gaps, which shows that a tight group far out is no tail, and from the gaps below the set, which scattered outliers
cannot mask. Size `k` gets a share of the false alarms in proportion to `1 / k`, as single samples are hardest to find.

Only the outer half of the samples is used, without those that lie on the centre. A filter that is silent for most
samples, as a rectified one may be, is a censored sample: only its outermost values are seen. A set with fewer than 20
gaps below it is not tested.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly.verdicts.gaps import find_borders

_FALSE_ALARMS = 0.005  # nominal rate, as a share of the filters; the measured rate is at most about twice that
_Array = npt.NDArray[np.float64]
_STEPS = 4  # of the centre; more change nothing


def isolated_samples(points: Tensor, rare_fraction: float, extremes: Tensor | None = None) -> Tensor:
    """Find the samples that each filter isolates, bool `(F, N)`, from its points `(F, N, 2)`.

    `rare_fraction` bounds their number, as a fraction of the samples. `extremes` are the largest and smallest value of
    each map before rectification `(F, N, 2)`, which show what the two components of a rectified map hide. In units of
    their median absolute deviations they are tested like points, and each test gets half of the false alarms. An
    extreme that is the same for most samples is left out.
    """
    sizes = int(rare_fraction * points.shape[1] * (1 + 1e-12))
    isolated = torch.zeros(points.shape[:2], dtype=torch.bool, device="cpu")
    if sizes and len(points):
        views = [points.cpu().double()]  # in this order: not every device has doubles
        if extremes is not None:
            views.append(_scaled(extremes.cpu().double()))
        for view in views:
            distances = _centre_distances(view.numpy())
            isolated |= torch.from_numpy(distances >= find_borders(distances, sizes, _FALSE_ALARMS / len(views)))
    return isolated.to(points.device)


def _centre_distances(points: _Array) -> _Array:
    """Compute the distances `(F, N)` of points `(F, N, 2)` from the mean of the half of them that is closest to it.

    For a filter that is silent for more than half of the samples this is the silent point. It rotates with the points,
    and a few outliers move it as little as a median.
    """
    plane = np.ascontiguousarray(points).view(np.complex128)[..., 0]
    with np.errstate(invalid="ignore"):  # NaN for a filter with NaN or infinite values
        distances: _Array = np.abs(plane - plane.mean(1, keepdims=True))
        for _ in range(_STEPS):
            near = distances <= _lower_median(distances)
            distances = np.abs(plane - (plane * near).sum(1, keepdims=True) / near.sum(1, keepdims=True))
    return distances


def _scaled(values: Tensor) -> Tensor:
    """Centre values `(F, N, 2)` at their medians and divide by the median absolute deviations; 0 where that is 0."""
    centred = values - torch.from_numpy(_lower_median(values.numpy()))
    spread = torch.from_numpy(_lower_median(centred.abs().numpy()))
    return torch.where(spread > 0, centred / spread, 0)


def _lower_median(values: _Array) -> _Array:
    """Return the lower medians along axis 1, which is kept; NumPy's selection is ten times as fast as torch's."""
    middle = (values.shape[1] - 1) // 2
    return np.partition(values, middle, axis=1)[:, middle : middle + 1]
