"""Which samples a filter sets apart from all others, by a rule whose false alarms are known.

A clustering always finds clusters, also where a filter is only sparse or has a heavy tail. This asks of the gap between
the outermost samples and the next one whether the tail that the other samples have could have left it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_anomaly.clustering.threads import torch_in_threads

__all__ = ["isolated_samples"]

_FALSE_ALARMS = 0.005  # nominal share of the filters with nothing to find; measured, about twice that at most
# Tails that a filter may have: t distributions with 1 / shape degrees of freedom, from Gaussian (0) to Cauchy (1).
_SHAPES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
_GAUSSIAN = 0.75  # weight of the first before anything is seen; the others share the rest
_MIN_GAPS = 20  # gaps below a set without which its tail is not judged
_STEPS = 4  # of the centre; more change nothing
_SILENT = 1e-9  # distances that are zero but for rounding, in units of the largest that no set holds
_ROUNDING = 1e-12  # the same, in units of the largest
_BATCH_VALUES = 2**19  # held at once


def isolated_samples(points: Tensor, rare_fraction: float, extremes: Tensor | None = None) -> Tensor:
    """The samples that each filter sets apart from all others: none for most filters.

    The samples are ordered by their distance from the centre of the densest half, `r_1 >= r_2 >= ...`. For every set of
    the `k` outermost ones, `k` up to `rare_fraction * N`, the gap to the next sample is compared with the tail of the
    others. Were the distances those of a two-dimensional t distribution with `1 / h` degrees of freedom, whose upper
    quantile is `u(p) = sqrt((p ** (-2 h) - 1) / h)`, with any centre and scale, then

    - the normalised gaps `j * (r_j - r_(j+1))` would be nearly independent and exponential, with means proportional to
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
    if sizes == 0 or samples // 2 <= _MIN_GAPS or len(points) == 0:
        return torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    step = max(1, _BATCH_VALUES // (len(_SHAPES) * (samples // 2)))
    views = [points.cpu().double()]  # in this order: not every device has doubles
    if extremes is not None:
        views.append(torch.stack([_scaled(part) for part in extremes.cpu().double().unbind(2)], 2))
    level = _FALSE_ALARMS / len(views)

    def found(part: Tensor) -> Tensor:
        return _set_apart(_distances(part), sizes, level)

    apart = [torch.cat(torch_in_threads(found, torch.split(view, step), like=view)) for view in views]
    return torch.stack(apart).any(0).to(points.device)


def _scaled(values: Tensor) -> Tensor:
    """Values `(F, N)` from their median, in units of the median absolute deviation; 0 where that is 0."""
    centred = values - _median(values)
    spread = _median(centred.abs())
    return torch.where(spread > 0, centred / spread, 0)


def _distances(points: Tensor) -> Tensor:
    """Distances `(F, N)` from the mean of the half of the points that lies closest to it, found by iteration.

    It is the silent point of a filter that is silent for more than half of the samples, turns with the points, and is
    moved by a few outliers as little as a median.
    """
    x, y = (part.contiguous() for part in points.unbind(2))
    distances = ((x - x.mean(1, keepdim=True)).square() + (y - y.mean(1, keepdim=True)).square()).sqrt()
    for _ in range(_STEPS):
        inner = (distances <= _median(distances)).double()
        number = inner.sum(1, keepdim=True)
        means = [(part * inner).sum(1, keepdim=True) / number for part in (x, y)]
        distances = ((x - means[0]).square() + (y - means[1]).square()).sqrt()
    return distances


def _median(rows: Tensor) -> Tensor:
    """The lower median of each row `(F, 1)`; NumPy's selection is ten times as fast as torch's."""
    middle = (rows.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(rows.numpy(), middle)[:, middle : middle + 1])


def _set_apart(distances: Tensor, sizes: int, level: float) -> Tensor:
    """Whether each sample is among the outermost `k <= sizes` ones that have a gap behind them `(F, N)`."""
    farthest = distances.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    distances = torch.where(distances > _ROUNDING * farthest, distances / farthest, 0)
    ordered = torch.from_numpy(np.sort(distances.numpy()))[:, (distances.shape[1] - 1) // 2 :].flip(1)
    unit = ordered[:, sizes : sizes + 1]  # next to the farthest, all others may look silent
    unit = torch.where(unit > 0, unit, 1)
    distances, ordered = distances / unit, ordered / unit
    active = (distances > _SILENT).sum(1)
    k = torch.arange(1, sizes + 1, device=distances.device, dtype=torch.float64)
    significant = _gap_probabilities(ordered, active, distances.shape[1], sizes) <= level / (k * (1 / k).sum())
    largest = torch.where(significant, k, 0).amax(1).long()[:, None]
    return (largest > 0) & (distances >= ordered.gather(1, (largest - 1).clamp(min=0)))


def _gap_probabilities(ordered: Tensor, active: Tensor, samples: int, sizes: int) -> Tensor:
    """Probabilities of gaps as wide as those behind the k outermost samples.

    Args:
        ordered: The largest `M + 1` distances of each filter, largest first `(F, M + 1)`.
        active: Number of samples that do not lie on the centre `(F,)`.
        samples: Number of samples, N.
        sizes: Largest k.

    Returns:
        Probabilities `(F, sizes)`; 1 where the tail below is too short to judge.
    """
    most = ordered.shape[1] - 1
    shapes = ordered.new_tensor(_SHAPES).clamp(min=1e-9)
    prior = torch.full_like(shapes, (1 - _GAUSSIAN) / (len(shapes) - 1))
    prior[0] = _GAUSSIAN
    # What a tail of each shape expects, place by place: `(M + 1, shapes)`.
    place = torch.arange(1, most + 2, device=ordered.device).double()
    tail = torch.log((samples + 1) / place)[:, None]
    quantile = (torch.expm1(2 * shapes * tail) / shapes).sqrt()
    log_mean = (2 * shapes * tail - quantile.log())[:most]
    log_mean_sum = torch.cat([torch.zeros_like(log_mean[:1]), log_mean.cumsum(0)])

    last = active.sub(1).clamp(0, most)[:, None]  # gaps between samples that are not silent
    gaps = ordered.diff(dim=1).neg() * place[:most] * (place[:most] <= last)
    positive = (gaps > _SILENT).double()
    below = positive.sum(1, keepdim=True) - positive.cumsum(1)[:, :sizes]
    outer = gaps[:, :sizes, None] / log_mean[:sizes].exp()  # (F, sizes, shapes), in units of the expected gap
    inner = (gaps[:, None, sizes:] * log_mean[sizes:].neg().exp().T).sum(2)
    sums = inner[:, None] + outer.flip(1).cumsum(1).flip(1)
    first = quantile[last]  # (F, 1, shapes), where the used distances begin
    ends = [(ordered[:, i : i + sizes] - ordered.gather(1, last))[..., None] for i in (0, 1)]
    k = place[:sizes, None]

    def probability(total: Tensor, number: Tensor, log_means: Tensor) -> Tensor:
        """The gaps' probabilities, by the sum, the number and the summed log means of the others."""
        total, number = total.clamp(min=_SILENT), number.clamp(min=1)
        weights = (prior.log() - log_means - number * total.log()).softmax(2)
        outside, inside = (torch.log1p(shapes * (first + end * number / total).square()) for end in ends)
        x = k * (outside - inside) / (2 * shapes)
        result: Tensor = (weights * torch.exp(-number * torch.log1p(x / number))).sum(2)
        return result

    number, log_means = last[:, :, None].double(), log_mean_sum[last]
    from_others = probability(sums[:, :1] - outer, number - 1, log_means - log_mean[:sizes])
    from_below = probability(sums - outer, number - k, log_means - log_mean_sum[1 : sizes + 1])
    return torch.where(below >= _MIN_GAPS, 2 * torch.minimum(from_others, from_below), 1.0)
