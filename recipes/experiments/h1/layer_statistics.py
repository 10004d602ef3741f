"""Numbers that describe one layer, its report or its weights: functions on tensors.

Axes: `N` samples, `F` filters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, NORMAL

__all__ = [
    "class_separation",
    "gap",
    "kurtosis",
    "layer_statistics",
    "silent_share",
    "tail_gaps",
    "weight_statistics",
]


def kurtosis(values: Tensor) -> Tensor:
    """Kurtosis `(F,)` of values `(F, N)`: the fourth central moment over the squared variance, 3 for a Gaussian."""
    centred = values - values.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.square().mean(1).square()


def silent_share(points: Tensor) -> Tensor:
    """Share `(F,)` of the samples that lie on the median of points `(F, N, 2)`.

    Near 1 for a filter that gives the same map, as a rule an empty one, for all but a few samples.
    """
    return (points == points.median(1, keepdim=True).values).all(2).double().mean(1)


def gap(points: Tensor, outliers: Tensor) -> Tensor:
    """Smallest distance `(F,)` between an outlier and another sample, in the unit of the points `(F, N, 2)`.

    Outliers `(F, N)`; 0 for a filter without any.
    """
    gaps = torch.zeros(len(points), dtype=points.dtype)
    for index in outliers.any(1).nonzero()[:, 0].tolist():
        chosen = outliers[index]
        gaps[index] = torch.cdist(points[index, chosen], points[index, ~chosen]).min()
    return gaps


def tail_gaps(points: Tensor, rare_fraction: float = 0.02) -> Tensor:
    """How unlikely `(F,)` the largest gap in the tail of points `(F, N, 2)` is, if the tail is of one piece.

    For distances with a Pareto tail, the k-th largest one's logarithm minus that of the next, times k, are independent
    and exponential (Renyi, "On the theory of order statistics", 1953; Hill, "A simple general approach to inference
    about the tail of a distribution", 1975). So the largest of these among the `m` outermost samples, in units of the
    mean of the next `4 m`, has a known distribution whatever the tail's weight; lighter tails, such as an exponential
    or a Gaussian one, have smaller gaps still. The distances are those from the median point.

    Args:
        points: Points of `N` samples.
        rare_fraction: `m` is this fraction of them.

    Returns:
        The probability of so large a gap; 1 where the inner of these samples lie on the median point.
    """
    m = max(1, round(rare_fraction * points.shape[1]))
    centred = points.double() - points.double().median(1, keepdim=True).values
    largest = centred.norm(dim=2).topk(5 * m + 1, dim=1).values
    tested = largest[:, -1] > 0
    gaps = -largest[tested].log().diff(dim=1) * torch.arange(1, 5 * m + 1)
    ratio = gaps[:, :m].amax(1) / gaps[:, m:].mean(1)
    below = torch.zeros_like(ratio)  # P(all m gaps are below it), by the binomial theorem under the Gamma of the mean
    for k in range(m + 1):
        below += (-1) ** k * math.comb(m, k) * (1 + k * ratio / (4 * m)) ** (-4 * m)
    probability = torch.ones(len(points), dtype=torch.float64)
    probability[tested] = (1 - below).clamp(0, 1)
    return probability


def class_separation(points: Tensor, labels: Tensor) -> Tensor:
    """Share `(F,)` of the variance of points `(F, N, 2)` that lies between the classes of labels `(N,)`."""
    centred = (points - points.mean(1, keepdim=True)).double()
    members = torch.nn.functional.one_hot(labels).double()
    members = members[:, members.sum(0) > 0]
    means = torch.einsum("nc,fnd->fcd", members / members.sum(0), centred)
    between = torch.einsum("c,fcd->f", members.mean(0), means.square())
    return between / centred.square().sum(2).mean(1)


def layer_statistics(layer: LayerReport, labels: Tensor) -> dict[str, float]:
    """What a layer's report says, with the statistics that could explain its count or replace it.

    Args:
        layer: The report.
        labels: Classes of the probe samples `(N,)`, as the network was given them.

    Returns:
        `count` anomaly filters of `live` ones, `dead` ones; `sparsity`, mean over all filters; over the live filters
        the median `kurtosis` of the first component, the mean class `separation`, the mean share of the maps' variance
        that is `outside` of the two components, and the mean variance of the `second` component in units of the first
        one's; of the anomaly filters, how many give nine tenths of the probe one and the same map (`silent`), and for
        how many the outliers are at least one standard deviation away from all other samples (`isolated`); `set_apart`,
        filters with isolated samples; `outliers`, samples that are outliers of any.
    """
    anomaly, normal = layer.filters(ANOMALY), layer.filters(NORMAL)
    live = sorted(anomaly + normal)
    points = layer.points.double()
    silent = silent_share(layer.points[anomaly]) >= 0.9
    isolated = gap(points[anomaly], layer.outliers[anomaly]) >= 1
    return {
        "count": len(anomaly),
        "live": len(live),
        "dead": len(layer.verdicts) - len(live),
        "sparsity": layer.sparsity.mean().item(),
        "kurtosis": kurtosis(points[live, :, 0]).median().item() if live else 0.0,
        "separation": class_separation(points[live], labels).mean().item() if live else 0.0,
        "outside": 1 - layer.explained[live].mean().item() if live else 0.0,
        "second": points[live, :, 1].var(1, correction=0).mean().item() if live else 0.0,
        "silent": int(silent.sum()),
        "isolated": int(isolated.sum()),
        "set_apart": len(layer.isolated_filters),
        "outliers": int(layer.outliers.any(0).sum()),
    }


def weight_statistics(weight: Tensor) -> dict[str, float]:
    """Variance and Euclidean norm of a layer's weights."""
    return {"weight_variance": weight.var().item(), "weight_norm": weight.norm().item()}
