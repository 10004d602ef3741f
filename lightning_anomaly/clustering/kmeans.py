"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import Engine
from lightning_anomaly.clustering.ties import in_order

__all__ = ["kmeans", "kmeans_plus_plus", "random_samples"]

_MAX_ITER = 300  # scikit-learn's default for KMeans


def kmeans_plus_plus(points: Tensor, n_init: int, n_clusters: int, seed: int, engine: Engine) -> Tensor:
    """Draw starting centres by k-means++ (Arthur and Vassilvitskii, 2007).

    All filters use the same uniform random numbers, each on its own points in the order of their first coordinate, so
    that a filter's centres depend neither on the other filters nor on the order of the samples.

    Args:
        points: Points `(F, N, 2)`.
        n_init: Number of draws, S.
        n_clusters: Number of centres, K. The first k of them are a draw for k centres.
        seed: Seed of the random numbers.
        engine: What runs the loop.

    Returns:
        Centres `(F, S, K, 2)`.
    """
    return engine.kmeans_plus_plus(points, _uniform(n_init, n_clusters, seed).to(points))


def random_samples(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw distinct samples as starting centres; arguments and result as in `kmeans_plus_plus`."""
    order = _uniform(n_init, points.shape[1], seed).argsort(1)[:, :n_clusters].to(points.device)
    return in_order(points)[:, order]


def kmeans(points: Tensor, centres: Tensor, engine: Engine) -> Tensor:
    """Lloyd's algorithm from several starts; the clustering with the smallest inertia.

    Args:
        points: Points `(F, N, 2)`.
        centres: Starts `(F, S, K, 2)`.
        engine: What runs the loop.

    Returns:
        Labels `(F, N)` of the best start, the first of those equal up to rounding. A cluster that loses all its points
        keeps its centre.
    """
    return engine.kmeans(points, centres, _MAX_ITER)


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
