"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.backend import compiled_for
from lightning_anomaly.clustering.engines import _torch_kmeans
from lightning_anomaly.clustering.ties import SAME, first_largest, in_order, nearest

__all__ = ["kmeans", "kmeans_plus_plus", "random_samples"]

_MAX_ITER = 300  # scikit-learn's default for KMeans


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
        from lightning_anomaly.clustering.engines import _numba_kmeans

        threads = torch.get_num_threads()
        return torch.from_numpy(_numba_kmeans.kmeans_plus_plus(points.numpy(), uniform.numpy(), threads))
    return _torch_kmeans.kmeans_plus_plus(in_order(points), uniform)


def random_samples(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw distinct samples as starting centres; arguments and result as in `kmeans_plus_plus`."""
    order = _uniform(n_init, points.shape[1], seed).argsort(1)[:, :n_clusters].to(points.device)
    return in_order(points)[:, order]


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
        from lightning_anomaly.clustering.engines import _numba_kmeans

        threads = torch.get_num_threads()
        return torch.from_numpy(_numba_kmeans.kmeans(points.numpy(), centres.numpy(), _MAX_ITER, SAME, threads))
    found, inertia = _torch_kmeans.kmeans(points, centres, _MAX_ITER)
    best = first_largest(-inertia)[:, None, None, None].expand(-1, 1, *found.shape[2:])
    return nearest(points, found.gather(1, best))[:, 0]


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
