"""Sizes, means and covariances of clusters, and what follows from them: mixtures to start from, and the index."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from lightning_anomaly.clustering.ties import SAME

__all__ = ["Moments", "calinski_harabasz", "cluster_parameters", "cluster_sizes"]

Moments = Callable[[Tensor, Tensor, int], Tensor]  # an engine's `cluster_moments`


def cluster_parameters(
    points: Tensor, labels: Tensor, n_components: int, reg_covar: float, cluster_moments: Moments
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and precisions of the clusters of a hard clustering: one M-step.

    Args:
        points: Points `(F, N, 2)`.
        labels: Labels `(F, S, N)` from 0 to `n_components - 1`.
        n_components: Number of components, K.
        reg_covar: Added to the variances.
        cluster_moments: What sums up the moments, see `Engine.cluster_moments`.

    Returns:
        Weights `(F, S, K)`, means `(F, S, K, 2)`, precisions `(F, S, K, 2, 2)`.
    """
    moments = cluster_moments(points, labels, n_components)
    sizes, means, covariances = moments[..., 0], moments[..., 1:3], moments[..., 3:]
    count = sizes + 10 * torch.finfo(points.dtype).eps  # as scikit-learn does, in moments too
    share = (sizes / count)[..., None]
    xx, xy, yy = (covariances * share).unbind(-1)
    xx, yy = xx + reg_covar, yy + reg_covar
    determinant = xx * yy - xy * xy
    precisions = torch.stack([yy, -xy, -xy, xx], -1).reshape(*xx.shape, 2, 2) / determinant[..., None, None]
    return count / count.sum(2, keepdim=True), means * share, precisions


def cluster_sizes(labels: Tensor) -> Tensor:
    """Number of samples in each cluster `(..., K)` of labels `(..., N)`, K one more than the largest label."""
    clusters = _clusters(labels)
    sizes = torch.zeros(*labels.shape[:-1], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(-1, labels, torch.ones_like(labels))


def _clusters(labels: Tensor) -> int:
    """One more than the largest label."""
    return int(labels.max()) + 1 if labels.numel() else 0


def calinski_harabasz(points: Tensor, labels: Tensor, cluster_moments: Moments) -> Tensor:
    """The Calinski-Harabasz index, [SSB / (k - 1)] / [SSW / (N - k)] with k occupied clusters.

    Calinski and Harabasz, "A dendrite method for cluster analysis" (1974). SSW counts as at least `SAME ** 2` times
    SSB. Where all points of a cluster are equal the order of a sum decides whether it is 0, for which scikit-learn's
    index is 1, or about 1e-34, for which it is about 1e34.

    Args:
        points: Points `(F, N, 2)`.
        labels: Clusters `(F, M, N)`.
        cluster_moments: What sums up the moments, see `Engine.cluster_moments`.

    Returns:
        The index `(F, M)`; 0 where it is not defined, with one occupied cluster or as many as samples.
    """
    samples = points.shape[1]
    clusters = _clusters(labels)
    if clusters == 0:
        return points.new_zeros(labels.shape[:2])
    centre = points.transpose(1, 2).contiguous().mean(2)[:, None]
    moments = cluster_moments(points - centre, labels, clusters)
    sizes, means, covariances = moments[..., 0], moments[..., 1:3], moments[..., 3:]
    occupied = (sizes > 0).sum(2)
    # One by one: `sum` adds in an order that depends on the number of clusters, which other filters have a part in.
    within, between = (
        reduce(torch.add, (sizes * squares).unbind(2))
        for squares in (covariances[..., 0] + covariances[..., 2], means.square().sum(3))
    )
    within = torch.maximum(within, SAME**2 * between)
    ratio = between * (samples - occupied) / (within * (occupied - 1))
    index = torch.where(within > 0, ratio, 1.0)
    return torch.where((occupied > 1) & (occupied < samples), index, 0.0)
