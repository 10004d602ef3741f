"""Cluster each filter's points by mixtures of 2, 3, ... components, and compute the index of each clustering.

No function changes its arguments, and a filter's result does not depend on other filters. Compiled loops are in
`mixture_loops.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly._internal.compilation import announce_compilation
from lightning_anomaly.filters import mixture_loops as loops
from lightning_anomaly.filters.settings import AnalysisSettings

# scikit-learn's defaults
MAX_ITER = 100
TOL = 1e-3
REG_COVAR = 1e-6  # the points have unit spread

_SMALLEST_RATIO = 1e-18  # of the squares within clusters to those between them, see `calinski_harabasz`

# Weights `(F, K)`, means `(F, K, 2)`, and factors `(F, K, 3)`: the entries `u11`, `u12`, `u22` of an upper triangular U
# with precision `U U^T`
Parameters = tuple[Tensor, Tensor, Tensor]


class Clustering(NamedTuple):
    """Clusterings of F filters by M mixtures with different numbers of components."""

    n_components: Tensor  # of each mixture, ascending `(M,)`
    labels: Tensor  # cluster of each sample `(F, M, N)`
    calinski_harabasz: Tensor  # index of each clustering `(F, M)`; 0 if all samples are in one cluster


class MixtureFit(NamedTuple):
    """Fitted mixtures of F filters, named as in scikit-learn."""

    weights: Tensor  # of the components `(F, K)`
    means: Tensor  # of the components `(F, K, 2)`
    factors: Tensor  # see `Parameters`
    lower_bound: Tensor  # mean log-likelihood per sample before the last M-step (nats) `(F,)`
    labels: Tensor  # most probable component of each sample `(F, N)`
    n_iter: Tensor  # `(F,)`
    converged: Tensor  # whether the last change of the lower bound was below `tol` `(F,)`


def cluster_filters(points: Tensor, settings: AnalysisSettings) -> Clustering:
    """Fit mixtures with 2 to `settings.max_components` components to the float64 points of filters `(F, N, 2)`.

    There are at most N - 1 components. Fewer than 3 samples give one clustering with 0 components and one cluster.
    """
    filters, samples = points.shape[:2]
    numbers = [*range(2, min(settings.max_components, samples - 1) + 1)] or [0]
    labels = torch.zeros(filters, len(numbers), samples, dtype=torch.int64, device=points.device)
    index = points.new_zeros(filters, len(numbers))
    if filters and samples > 2:
        announce_compilation(loops.expectation_maximization)
        centers = draw_centers(points, settings.n_init, numbers[-1], settings.seed)
        for place, k in enumerate(numbers):
            start = cluster_parameters(points, kmeans(points, centers[:, :, :k]), k)
            if settings.engine == "sklearn":
                from lightning_anomaly.filters.sklearn_estimators import sklearn_mixtures

                labels[:, place] = sklearn_mixtures(points, *start)
            else:
                labels[:, place] = fit_mixtures(points, start).labels
        index = calinski_harabasz(points, labels)
    return Clustering(torch.tensor(numbers, device=points.device), labels, index)


def draw_centers(points: Tensor, n_init: int, n_clusters: int, seed: int) -> Tensor:
    """Draw K centers `(F, S, K, 2)` among points `(F, N, 2)` by k-means++ (Arthur and Vassilvitskii, 2007), S times.

    The first k centers of a draw are a draw of k centers. All filters use the same random numbers, on sorted points, so
    that a filter's centers do not depend on other filters or on the order of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n_init, n_clusters, generator=generator, dtype=torch.float64, device="cpu")
    in_order = np.sort(points.contiguous().numpy().view(np.complex128)[..., 0], axis=1)
    xs, ys = np.ascontiguousarray(in_order.real), np.ascontiguousarray(in_order.imag)
    centers = np.empty((len(xs), n_init, n_clusters, 2))
    loops.draw_centers_loop(xs, ys, uniform.numpy(), centers)
    return torch.from_numpy(centers)


def kmeans(points: Tensor, centers: Tensor) -> Tensor:
    """Run Lloyd's algorithm on points `(F, N, 2)` from starts `(F, S, K, 2)`; return the best labels `(F, N)`."""
    xs, ys = _coordinates(points)
    labels = np.zeros(xs.shape, np.int64)
    loops.lloyd_loop(xs, ys, np.array(centers.numpy(), order="C"), labels)
    return torch.from_numpy(labels)


def cluster_parameters(points: Tensor, labels: Tensor, n_components: int, reg_covar: float = REG_COVAR) -> Parameters:
    """Compute the parameters of a hard clustering `(F, N)` of points `(F, N, 2)` by one M-step."""
    sizes, means, covariances = cluster_moments(points, labels, n_components)
    count = sizes + loops.EMPTY
    xx, xy, yy = covariances.unbind(2)
    l11 = (xx + reg_covar).sqrt()  # the covariance is L L^T, and U is the transposed inverse of L
    l21 = xy / l11
    l22 = (yy + reg_covar - l21 * l21).clamp(min=0.5 * reg_covar).sqrt()  # at least, despite rounding
    return count / count.sum(1, keepdim=True), means, torch.stack([1 / l11, -l21 / (l11 * l22), 1 / l22], 2)


def fit_mixtures(
    points: Tensor, start: Parameters, max_iter: int = MAX_ITER, tol: float = TOL, reg_covar: float = REG_COVAR
) -> MixtureFit:
    """Run expectation maximization on points `(F, N, 2)`, with the steps of scikit-learn's `GaussianMixture`."""
    xs, ys = _coordinates(points)
    filters, samples = xs.shape
    weights, means, factors = start
    w, mu, u = (np.array(part.numpy(), order="C") for part in (weights, means, factors * loops.SCALE))
    bounds, n_iter, converged = np.empty(filters), np.zeros(filters, np.int64), np.zeros(filters, np.bool_)
    labels = np.empty((filters, samples), np.int64)
    loops.expectation_maximization(xs, ys, w, mu, u, max_iter, tol, reg_covar, bounds, n_iter, converged, labels)
    return MixtureFit(*map(torch.from_numpy, (w, mu, u / loops.SCALE, bounds, labels, n_iter, converged)))


def calinski_harabasz(points: Tensor, labels: Tensor) -> Tensor:
    """Compute the Calinski-Harabasz index `(F, M)` of labels `(F, M, N)` of points `(F, N, 2)`.

    It is [SSB / (k - 1)] / [SSW / (N - k)] for k occupied clusters, and 0 if k is 1 or N (Calinski and Harabasz, "A
    dendrite method for cluster analysis", 1974). SSW is at least 1e-18 times SSB: if the points of each cluster are
    equal, rounding would decide between an SSW of 0, for which scikit-learn's index is 1, and 1e-34.
    """
    samples = points.shape[1]
    centered = points - points.mean(1, keepdim=True)
    index = points.new_zeros(labels.shape[:2])
    for place, label in enumerate(labels.unbind(1)):
        sizes, means, covariances = cluster_moments(centered, label, int(label.max()) + 1)
        k = (sizes > 0).sum(1)
        between = (sizes * means.square().sum(2)).sum(1)
        within = (sizes * (covariances[..., 0] + covariances[..., 2])).sum(1).clamp(min=_SMALLEST_RATIO * between)
        ratio = between * (samples - k) / (within * (k - 1))
        index[:, place] = torch.where((k > 1) & (k < samples), ratio, 0.0)
    return index


def cluster_moments(points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute sizes `(F, K)`, means `(F, K, 2)` and covariances xx, xy, yy `(F, K, 3)`; empty clusters give zeros."""
    moments = np.zeros((len(points), n_clusters, 6))
    loops.cluster_moments_loop(*_coordinates(points), labels.contiguous().numpy(), moments)
    tensor = torch.from_numpy(moments)
    return tensor[..., 0], tensor[..., 1:3], tensor[..., 3:]


def _coordinates(points: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the coordinates `(F, N)` of points `(F, N, 2)` as contiguous arrays."""
    return points[..., 0].contiguous().numpy(), points[..., 1].contiguous().numpy()
