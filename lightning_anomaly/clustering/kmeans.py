"""Where the mixtures start: from k-means clusterings, or from random samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import Engine
from lightning_anomaly.clustering.ties import in_order

__all__ = ["kmeans_plus_plus", "random_samples"]


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


def _uniform(rows: int, columns: int, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
