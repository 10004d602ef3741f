"""Where k-means, and with it the mixtures, start."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import Engine

__all__ = ["kmeans_plus_plus"]


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
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n_init, n_clusters, generator=generator, dtype=torch.float64, device="cpu")
    return engine.kmeans_plus_plus(points, uniform.to(points))
