"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.backend import compiled_for
from lightning_anomaly.clustering.engines import torch_kmeans

__all__ = [
    "cluster_moments",
    "cluster_parameters",
    "first_largest",
    "kmeans",
    "kmeans_plus_plus",
    "nearest",
    "random_samples",
]

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
    uniform = _uniform(n_init, n_clusters, seed).to(points)
    if compiled_for(points, None):
        from lightning_anomaly.clustering.engines import numba_kmeans

        threads = torch.get_num_threads()
        return torch.from_numpy(numba_kmeans.kmeans_plus_plus(points.numpy(), uniform.numpy(), threads))
    return torch_kmeans.kmeans_plus_plus(_sorted(points), uniform)


def random_samples(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw distinct samples as starting centres; arguments and result as in `kmeans_plus_plus`."""
    order = _uniform(n_init, points.shape[1], seed).argsort(1)[:, :n_clusters].to(points.device)
    return _sorted(points)[:, order]


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index of the nearest centre, the first of equals, for `(F, N, 2)` and `(F, S, K, 2)`: `(F, S, N)`."""
    x, y = points[:, None, None].unbind(4)
    cx, cy = centres[..., None, :].unbind(4)
    squared, dy = (x - cx).square_(), y - cy
    return squared.addcmul_(dy, dy).min(2).indices  # `argmin` takes twenty times as long


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
        from lightning_anomaly.clustering.engines import numba_kmeans

        threads = torch.get_num_threads()
        return torch.from_numpy(numba_kmeans.kmeans(points.numpy(), centres.numpy(), _MAX_ITER, _SAME, threads))
    found, inertia = torch_kmeans.kmeans(points, centres, _MAX_ITER)
    best = first_largest(-inertia)[:, None, None, None].expand(-1, 1, *found.shape[2:])
    return nearest(points, found.gather(1, best))[:, 0]


def cluster_moments(points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, means and covariances of clusters.

    Args:
        points: Points `(F, N, 2)`.
        labels: Labels `(F, S, N)` from 0 to `n_clusters - 1`.
        n_clusters: Number of clusters, K.

    Returns:
        Sizes `(F, S, K)`, means `(F, S, K, 2)` and covariances xx, xy, yy `(F, S, K, 3)`; zeros for empty clusters.
    """
    if compiled_for(points, None):
        from lightning_anomaly.clustering.engines import numba_kmeans

        threads = torch.get_num_threads()
        moments = torch.from_numpy(numba_kmeans.cluster_moments(points.numpy(), labels.numpy(), n_clusters, threads))
        return moments[..., 0], moments[..., 1:3], moments[..., 3:]
    moments = torch_kmeans.cluster_moments(points, labels, n_clusters)
    return moments[..., 0], moments[..., 1:3], moments[..., 3:]


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
    sizes, means, covariances = cluster_moments(points, labels, n_components)
    count = sizes + 10 * torch.finfo(points.dtype).eps  # as scikit-learn does, in moments too
    share = (sizes / count)[..., None]
    xx, xy, yy = (covariances * share).unbind(-1)
    xx, yy = xx + reg_covar, yy + reg_covar
    determinant = xx * yy - xy * xy
    precisions = torch.stack([yy, -xy, -xy, xx], -1).reshape(*xx.shape, 2, 2) / determinant[..., None, None]
    return count / count.sum(2, keepdim=True), means * share, precisions


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sorted(points: Tensor) -> Tensor:
    """Points in the order of their first coordinate, equals in that of their second."""
    for axis in (1, 0):
        order = points[..., axis].argsort(dim=1, stable=True)
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return points
