"""Cluster each filter's points by mixtures of 2, 3, ... components, and compute the index of each clustering."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.filters.parameters import EMPTY, SAME, Parameters, precision_factors
from lightning_anomaly.filters.settings import AnalysisSettings

if TYPE_CHECKING:
    from lightning_anomaly.filters.numba_engine import NumbaEngine

# scikit-learn's defaults
MAX_ITER = 100
TOL = 1e-3
REG_COVAR = 1e-6  # the points have unit spread


class Clustering(NamedTuple):
    """Clusterings of F filters by M mixtures with different numbers of components."""

    n_components: Tensor  # of each mixture, ascending `(M,)`
    labels: Tensor  # cluster of each sample `(F, M, N)`
    calinski_harabasz: Tensor  # index of each clustering `(F, M)`; 0 if all samples are in one cluster


def cluster_filters(points: Tensor, settings: AnalysisSettings, engine: NumbaEngine) -> Clustering:
    """Fit mixtures with 2 to `settings.max_components` components to the points of live filters `(F, N, 2)`.

    There are at most N - 1 components. Fewer than 3 samples give one clustering with 0 components and one cluster.
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


def kmeans_plus_plus(points: Tensor, n_init: int, n_clusters: int, seed: int, engine: NumbaEngine) -> Tensor:
    """Draw K centres `(F, S, K, 2)` among points `(F, N, 2)` by k-means++, S = `n_init` times.

    See Arthur and Vassilvitskii (2007). The first k centres of a draw are a draw of k centres. All filters use the same
    random numbers, on points sorted by their first coordinate, so that a filter's centres do not depend on other
    filters or on the order of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n_init, n_clusters, generator=generator, dtype=torch.float64, device="cpu")
    return engine.kmeans_plus_plus(points, uniform.to(points))


def cluster_parameters(
    points: Tensor, labels: Tensor, n_components: int, engine: NumbaEngine, reg_covar: float = REG_COVAR
) -> Parameters:
    """Compute the parameters of a hard clustering `(F, N)` of points `(F, N, 2)` by one M-step."""
    sizes, means, covariances = engine.cluster_moments(points, labels, n_components)
    count = sizes + EMPTY
    xx, xy, yy = covariances.unbind(2)
    return count / count.sum(1, keepdim=True), means, precision_factors(xx, xy, yy, reg_covar)


def calinski_harabasz(points: Tensor, labels: Tensor, engine: NumbaEngine) -> Tensor:
    """Compute the Calinski-Harabasz index `(F, M)` of labels `(F, M, N)` of points `(F, N, 2)`.

    It is [SSB / (k - 1)] / [SSW / (N - k)] for k occupied clusters, and 0 if k is 1 or N (Calinski and Harabasz, "A
    dendrite method for cluster analysis", 1974). SSW is bounded below by `SAME ** 2` times SSB. Without the bound, if
    the points of each cluster are equal, rounding decides between an SSW of 0, for which scikit-learn's index is 1, and
    one of 1e-34, for which it is 1e34.
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
    """Find the first position of the largest value along the last axis, up to rounding.

    Equal clusterings with other labels have values that differ by rounding, which should not affect the choice.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - SAME * largest.abs().clamp(min=1)).int().argmax(-1)
