"""Every filter's points clustered by mixtures of 2, 3, ... components, and the number of components chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.clustering.engine import EMPTY, SAME, Engine, Parameters, precision_factors
from lightning_anomaly.settings import AnalysisSettings

# scikit-learn's defaults
MAX_ITER = 100
TOL = 1e-3
REG_COVAR = 1e-6  # the points have unit spread


class Clustering(NamedTuple):
    """Mixtures with M numbers of components for each of F filters.

    Attributes:
        n_components: The numbers of components tried, ascending `(M,)`.
        labels: Cluster of each sample `(F, M, N)`.
        calinski_harabasz: Index of each clustering `(F, M)`; 0 where all samples are in one cluster.
    """

    n_components: Tensor
    labels: Tensor
    calinski_harabasz: Tensor


def cluster_filters(points: Tensor, settings: AnalysisSettings, engine: Engine) -> Clustering:
    """Fit mixtures with 2 to `settings.max_components` components to the points of live filters `(F, N, 2)`.

    Points are in units of their spread. Fewer samples than `max_components + 1` allow fewer components; of fewer than 3
    there is one clustering with 0 components, which has all samples in one cluster.
    """
    filters, samples = points.shape[:2]
    numbers = [*range(2, min(settings.max_components, samples - 1) + 1)] or [0]
    labels = torch.zeros(filters, len(numbers), samples, dtype=torch.int64, device=points.device)
    index = points.new_zeros(filters, len(numbers))
    if filters and samples > 2:
        centres = kmeans_plus_plus(points, settings.n_init, numbers[-1], settings.seed, engine)
        for place, k in enumerate(numbers):
            start = cluster_parameters(points, engine.kmeans(points, centres[:, :, :k]), k, engine)
            labels[:, place] = engine.em(points, start, MAX_ITER, TOL, REG_COVAR).labels
        index = calinski_harabasz(points, labels, engine)
    return Clustering(torch.tensor(numbers, device=points.device), labels, index)


def kmeans_plus_plus(points: Tensor, n_init: int, n_clusters: int, seed: int, engine: Engine) -> Tensor:
    """Draw `n_init` times K centres `(F, S, K, 2)` among points `(F, N, 2)` by k-means++.

    See Arthur and Vassilvitskii (2007). The first k centres are a draw of k centres. All filters use the same uniform
    random numbers, each on its own points in the order of their first coordinate, so that a filter's centres depend
    neither on the other filters nor on the order of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n_init, n_clusters, generator=generator, dtype=torch.float64, device="cpu")
    return engine.kmeans_plus_plus(points, uniform.to(points))


def cluster_parameters(
    points: Tensor, labels: Tensor, n_components: int, engine: Engine, reg_covar: float = REG_COVAR
) -> Parameters:
    """Compute the parameters of a hard clustering `(F, N)` of points `(F, N, 2)`: one M-step."""
    sizes, means, covariances = engine.cluster_moments(points, labels, n_components)
    count = sizes + EMPTY
    xx, xy, yy = covariances.unbind(2)
    return count / count.sum(1, keepdim=True), means, precision_factors(xx, xy, yy, reg_covar)


def calinski_harabasz(points: Tensor, labels: Tensor, engine: Engine) -> Tensor:
    """Compute the Calinski-Harabasz index `(F, M)` of labels `(F, M, N)` of points `(F, N, 2)`.

    With k occupied clusters it is [SSB / (k - 1)] / [SSW / (N - k)], or 0 where k is 1 or N (Calinski and Harabasz, "A
    dendrite method for cluster analysis", 1974). SSW counts as at least `SAME ** 2` times SSB. Where all points of a
    cluster are equal the order of a sum decides whether it is 0, for which scikit-learn's index is 1, or about 1e-34,
    for which it is about 1e34.
    """
    samples = points.shape[1]
    centred = points - points.mean(1, keepdim=True)
    index = points.new_zeros(labels.shape[:2])
    for place, label in enumerate(labels.unbind(1)):
        sizes, means, covariances = engine.cluster_moments(centred, label, int(label.max()) + 1)
        k = (sizes > 0).sum(1)
        between = (sizes * means.square().sum(2)).sum(1)
        within = (sizes * (covariances[..., 0] + covariances[..., 2])).sum(1).clamp(min=SAME**2 * between)
        ratio = between * (samples - k) / (within * (k - 1))
        index[:, place] = torch.where((k > 1) & (k < samples), ratio, 0.0)
    return index


def first_largest(values: Tensor) -> Tensor:
    """Find the largest value along the last axis: the position of the first of those that are equal up to rounding.

    The same clusters found twice, numbered in another way, have values that differ by rounding. Which one is chosen
    should not depend on the order of a sum.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - SAME * largest.abs().clamp(min=1)).int().argmax(-1)
