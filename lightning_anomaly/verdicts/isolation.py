"""Which samples a filter sets apart from all others, by a rule whose false alarms are known.

A clustering always finds clusters, also where a filter is only sparse or has a heavy tail. This asks of the gap between
the outermost samples and the next one whether the tail that the other samples have could have left it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_FALSE_ALARMS = 0.005  # nominal share of the filters with nothing to find; measured, about twice that at most


def isolated_samples(points: Tensor, rare_fraction: float, extremes: Tensor | None = None) -> Tensor:
    """The samples that each filter sets apart from all others: none for most filters.

    The samples are ordered by their distance from the centre of the densest half, `r_1 >= r_2 >= ...`. For every set of
    the `k` outermost ones, `k` up to `rare_fraction * N`, the gap to the next sample is compared with the tail of the
    others. Were the distances those of a two-dimensional t distribution with `1 / h` degrees of freedom, whose upper
    quantile is `u(p) = sqrt((p ** (-2 h) - 1) / h)`, with any centre and scale, then

    - the normalized gaps `j * (r_j - r_(j+1))` would be nearly independent and exponential, with means proportional to
      `p ** (-2 h) / u(p)` at `p = j / (N + 1)` (Renyi, "On the theory of order statistics", 1953; Matthys and Beirlant,
      "Estimating the extreme value index and high quantiles with exponential regression models", 2003), which gives the
      scale and, with the scale integrated out, the weight of every `h` given the data;
    - a gap at least as wide as that behind the `k` outermost samples would have probability `exp(-x)`, where `x` is `k`
      times the logarithm of the ratio of the tail probabilities at its two ends, or, as the scale is estimated from `n`
      gaps, `(1 + x / n) ** -n`.

    The probability is averaged over `h` by these weights, and taken twice: the other gaps may be all of them, which
    sees that a tight group far out is no tail, or only those below the set, which scattered outliers cannot mask. The
    smaller counts double, and size `k` has a share of the false alarms in proportion to `1 / k`, as single samples are
    hardest to find.

    Only the outer half of the samples is used, and of these only those that do not lie on the centre: a filter that is
    silent for most samples, as a rectified one may be, is a censored one, of which only the outermost are seen. If a
    set has fewer than 20 gaps of other samples below it, it is not judged.

    Args:
        points: Points `(F, N, 2)`; neither scale nor rotation matters.
        rare_fraction: Largest set, as a fraction of the samples.
        extremes: Largest and smallest value of each map before it is rectified `(F, N, 2)`. Each in units of its median
            absolute deviation, they are treated as points too, and half of the false alarms are then theirs. One that
            is the same for most samples is left out. They tell what the two components of a rectified map hide.

    Returns:
        Whether each sample is set apart `(F, N)`; it depends on no other filter.
    """
    samples = points.shape[1]
    sizes = int(rare_fraction * samples * (1 + 1e-12))
    if sizes == 0 or len(points) == 0:
        return torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    # Not above: an import of the package does without numba.
    from lightning_anomaly.verdicts.gaps import centre_distances, find_borders

    views = [points.cpu().double()]  # in this order: not every device has doubles
    if extremes is not None:
        views.append(torch.stack([_scaled(part) for part in extremes.cpu().double().unbind(2)], 2))
    apart = torch.zeros(points.shape[:2], dtype=torch.bool, device="cpu")
    for view in views:
        distances = centre_distances(view.numpy())
        apart |= torch.from_numpy(distances >= find_borders(distances, sizes, _FALSE_ALARMS / len(views)))
    return apart.to(points.device)


def _scaled(values: Tensor) -> Tensor:
    """Values `(F, N)` from their median, in units of the median absolute deviation; 0 where that is 0."""
    centred = values - _median(values)
    spread = _median(centred.abs())
    return torch.where(spread > 0, centred / spread, 0)


def _median(rows: Tensor) -> Tensor:
    """The lower median of each row `(F, 1)`; NumPy's selection is ten times as fast as torch's."""
    middle = (rows.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(rows.numpy(), middle)[:, middle : middle + 1])
