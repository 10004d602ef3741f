"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.backend import compiled_for

__all__ = ["cluster_parameters", "first_largest", "kmeans", "kmeans_plus_plus", "nearest", "random_samples"]

_MAX_ITER = 300  # scikit-learn's default for KMeans
_SAME = 1e-9  # relative difference that is rounding, for values of order one or larger


def first_largest(values: Tensor) -> Tensor:
    """Position of the largest value along the last axis, the first of those that are equal up to rounding.

    The same clusters found twice, numbered in another way, have values that differ by rounding. Which one is chosen
    should not depend on the order of a sum.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - _SAME * largest.abs().clamp(min=1)).int().argmax(-1)


def kmeans_plus_plus(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw starting centres by k-means++ (Arthur and Vassilvitskii, 2007).

    All filters use the same uniform random numbers, each on its own points in the order of their first coordinate, so
    that a filter's centres depend neither on the other filters nor on the order of the samples.

    Args:
        points: Points `(F, N, 2)`.
        n_init: Number of draws, S.
        n_clusters: Number of centres, K. The first k of them are a draw for k centres.
        seed: Seed of the random numbers.

    Returns:
        Centres `(F, S, K, 2)`.
    """
    filters, samples, _ = points.shape
    uniform = _uniform(n_init, n_clusters, seed).to(points)
    points = _sorted(points)
    rows = torch.arange(filters, device=points.device)[:, None]
    centres: list[Tensor] = []
    distance = points.new_ones(filters, n_init, samples)
    for k in range(n_clusters):
        cumulative = distance.cumsum(2)
        target = uniform[:, k, None] * cumulative[..., -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=samples - 1)
        centre = points[rows, chosen]
        centres.append(centre)
        squared = (points[:, None] - centre[:, :, None]).square().sum(3)
        distance = squared if k == 0 else torch.minimum(distance, squared)
    return torch.stack(centres, 2)


def random_samples(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw distinct samples as starting centres; arguments and result as in `kmeans_plus_plus`."""
    order = _uniform(n_init, points.shape[1], seed).argsort(1)[:, :n_clusters].to(points.device)
    return _sorted(points)[:, order]


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index of the nearest centre, the first of equals, for `(F, N, 2)` and `(F, S, K, 2)`: `(F, S, N)`."""
    squared = (points[:, None, None, :, 0] - centres[..., 0, None]).square()
    squared += (points[:, None, None, :, 1] - centres[..., 1, None]).square()
    return squared.argmin(2)


def kmeans(points: Tensor, centres: Tensor, *, compiled: bool | None = None) -> Tensor:
    """Lloyd's algorithm from several starts; the clustering with the smallest inertia.

    Args:
        points: Points `(F, N, 2)`.
        centres: Starts `(F, S, K, 2)`.
        compiled: See `fit_mixtures`.

    Returns:
        Labels `(F, N)` of the best start, the first of those equal up to rounding. A cluster that loses all its points
        keeps its centre.
    """
    if compiled_for(points, compiled):
        from lightning_anomaly import _compiled

        threads = torch.get_num_threads()
        best_labels = _compiled.kmeans(points.numpy(), centres.numpy(), _MAX_ITER, _SAME, threads)
        return torch.from_numpy(best_labels)
    filters, starts, clusters, _ = centres.shape
    samples = points.shape[1]
    centres = centres.flatten(0, 1).clone()
    labels = torch.empty(filters * starts, samples, dtype=torch.int64, device=points.device)
    inertia = points.new_full((filters * starts,), torch.inf)
    todo = torch.arange(filters * starts, device=points.device)
    for _ in range(_MAX_ITER):
        own = points[todo // starts]
        squared = (own[:, None, :, 0] - centres[todo, :, None, 0]).square()
        squared += (own[:, None, :, 1] - centres[todo, :, None, 1]).square()
        distance, label = squared.min(1)
        labels[todo] = label
        total = distance.sum(1)
        better = total < inertia[todo]
        inertia[todo] = total
        todo, label, own = todo[better], label[better], own[better]
        if not len(todo):
            break
        member = torch.zeros(len(todo), clusters, samples, dtype=points.dtype, device=points.device)
        member.scatter_(1, label[:, None], 1)
        count = member.sum(2, keepdim=True)
        moved = (member[..., None] * own[:, None]).sum(2) / count.clamp(min=1)
        centres[todo] = torch.where(count > 0, moved, centres[todo])
    best = first_largest(-inertia.view(filters, starts))
    return labels.view(filters, starts, samples)[torch.arange(filters, device=points.device), best]


def cluster_parameters(points: Tensor, labels: Tensor, n_components: int, reg_covar: float) -> tuple[Tensor, ...]:
    """Weights, means and precisions of the clusters of a hard clustering: one M-step.

    Args:
        points: Points `(F, N, 2)`.
        labels: Labels `(F, S, N)` from 0 to `n_components - 1`.
        n_components: Number of components, K.
        reg_covar: Added to the variances.

    Returns:
        Weights `(F, S, K)`, means `(F, S, K, 2)`, precisions `(F, S, K, 2, 2)`.
    """
    member = torch.zeros(*labels.shape[:2], n_components, labels.shape[2], dtype=points.dtype, device=points.device)
    member.scatter_(2, labels[:, :, None], 1)
    count = member.sum(3) + 10 * torch.finfo(points.dtype).eps
    own = points[:, None, None]
    means = (member[..., None] * own).sum(3) / count[..., None]
    x, y = (own - means[..., None, :]).unbind(4)
    xx, xy, yy = ((member * product).sum(3) / count for product in (x * x, x * y, y * y))
    xx, yy = xx + reg_covar, yy + reg_covar
    determinant = xx * yy - xy * xy
    precisions = torch.stack([yy, -xy, -xy, xx], 3).reshape(*xx.shape, 2, 2) / determinant[..., None, None]
    return count / count.sum(2, keepdim=True), means, precisions


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sorted(points: Tensor) -> Tensor:
    """Points in the order of their first coordinate, equals in that of their second."""
    for axis in (1, 0):
        order = points[..., axis].argsort(dim=1, stable=True)
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return points
