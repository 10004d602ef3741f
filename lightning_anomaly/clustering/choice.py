"""Every filter's points clustered by mixtures of 2, 3, ... components, and the number of components chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.clustering.backend import compiled_for
from lightning_anomaly.clustering.em import fit_mixtures
from lightning_anomaly.clustering.kmeans import kmeans, kmeans_plus_plus, random_samples
from lightning_anomaly.clustering.moments import calinski_harabasz, cluster_parameters
from lightning_anomaly.clustering.threads import torch_in_threads
from lightning_anomaly.clustering.ties import first_largest, nearest
from lightning_anomaly.settings import AnalysisSettings

__all__ = ["Clustering", "cluster_filters"]

_REG_COVAR = 1e-6  # scikit-learn's default; the points have unit spread
_TOL = 1e-3  # scikit-learn's default
_MAX_ITER = 100  # scikit-learn's default


@dataclass(frozen=True)
class Clustering:
    """Mixtures with M numbers of components for each of F filters.

    Attributes:
        n_components: The numbers of components tried, ascending `(M,)`.
        labels: Cluster of each sample `(F, M, N)`.
        calinski_harabasz: Index of each clustering `(F, M)`; 0 where all samples are in one cluster.
        best: Position in `n_components` of the clustering with the largest index, the first of those equal up to
            rounding `(F,)`.
    """

    n_components: Tensor
    labels: Tensor
    calinski_harabasz: Tensor
    best: Tensor


def cluster_filters(points: Tensor, settings: AnalysisSettings) -> Clustering:
    """Fit mixtures with 2 to `settings.max_components` components to each filter's points.

    Args:
        points: Points of live filters `(F, N, 2)`, in units of their spread.
        settings: See `AnalysisSettings`.

    Returns:
        The clusterings. Fewer samples than `max_components + 1` allow fewer components; fewer than 3 allow none, which
        gives `M = 0` and `best` 0.
    """
    filters, samples = points.shape[:2]
    numbers = range(2, min(settings.max_components, samples - 1) + 1)
    # Working memory: a few arrays (F, S, N), such as the labels of all random starts; the rest works in small pieces.
    bytes_per_filter = 8 * samples * settings.n_init * 4
    step = max(1, settings.max_memory_mb * 2**20 // bytes_per_filter)
    parts = [_cluster(points[first : first + step], numbers, settings) for first in range(0, filters, step)]
    labels = torch.cat([part[0] for part in parts]) if parts else points.new_zeros(0, len(numbers), samples).long()
    index = torch.cat([part[1] for part in parts]) if parts else points.new_zeros(0, len(numbers))
    best = first_largest(index) if len(numbers) else torch.zeros(filters, dtype=torch.int64, device=points.device)
    return Clustering(torch.tensor(list(numbers), dtype=torch.int64), labels, index, best)


def _cluster(points: Tensor, numbers: range, settings: AnalysisSettings) -> tuple[Tensor, Tensor]:
    if not len(numbers):
        return points.new_zeros(len(points), 0, points.shape[1]).long(), points.new_zeros(len(points), 0)
    draw = kmeans_plus_plus if settings.init == "kmeans" else random_samples
    centres = draw(points, settings.n_init, numbers[-1], settings.seed)
    fit = _fit_sklearn if settings.engine == "sklearn" else _fit

    def cluster(k: int) -> Tensor:
        return fit(points, _start(points, centres[:, :, :k], settings))

    if settings.engine == "sklearn" or compiled_for(points, None):  # these use all threads for each number
        labels = torch.stack([cluster(k) for k in numbers], 1)
    else:  # the largest number, which takes the longest, first
        labels = torch.stack(torch_in_threads(cluster, reversed(numbers), like=points)[::-1], 1)
    return labels, _index_sklearn(points, labels) if settings.engine == "sklearn" else calinski_harabasz(points, labels)


def _start(points: Tensor, centres: Tensor, settings: AnalysisSettings) -> tuple[Tensor, ...]:
    """Weights, means and precisions to start from, one start a filter for k-means and `n_init` for random samples."""
    labels = kmeans(points, centres)[:, None] if settings.init == "kmeans" else nearest(points, centres)
    return cluster_parameters(points, labels, centres.shape[2], _REG_COVAR)


def _fit(points: Tensor, start: tuple[Tensor, ...]) -> Tensor:
    """Labels `(F, N)` of the fit with the largest lower bound."""
    fit = fit_mixtures(points, *start, max_iter=_MAX_ITER, tol=_TOL, reg_covar=_REG_COVAR)
    return fit.labels[torch.arange(len(points), device=points.device), first_largest(fit.lower_bound)]


def _fit_sklearn(points: Tensor, start: tuple[Tensor, ...]) -> Tensor:
    """As `_fit`, by scikit-learn, on all cores."""
    from joblib import Parallel, delayed

    arrays = [tensor.cpu().numpy() for tensor in (points, *start)]
    labels = Parallel(n_jobs=-1)(delayed(sklearn_labels)(*filter_arrays) for filter_arrays in zip(*arrays, strict=True))
    return torch.stack([torch.from_numpy(label) for label in labels]).to(points.device)


def sklearn_labels(points: Any, weights: Any, means: Any, precisions: Any) -> Any:
    """Labels `(N,)` of one filter's points `(N, 2)` by scikit-learn's `GaussianMixture` from S starts `(S, K, ...)`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    bounds, labels = [], []
    for weight, mean, precision in zip(weights, means, precisions, strict=True):
        mixture = GaussianMixture(
            len(weight),
            weights_init=weight / weight.sum(),
            means_init=mean,
            precisions_init=precision,
            init_params="random_from_data",  # whatever it draws is replaced by the start given
            random_state=0,
            max_iter=_MAX_ITER,
            tol=_TOL,
            reg_covar=_REG_COVAR,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in `fit_mixtures`, it may end at `max_iter`
            labels.append(mixture.fit_predict(points))
        bounds.append(mixture.lower_bound_)
    return labels[int(first_largest(torch.tensor(bounds, dtype=torch.float64)))]


def _index_sklearn(points: Tensor, labels: Tensor) -> Tensor:
    from sklearn.metrics import calinski_harabasz_score

    def index(own: Any, label: Any) -> float:
        return float(calinski_harabasz_score(own, label)) if 1 < len(set(label.tolist())) < len(own) else 0.0

    values = [
        [index(own, label) for label in filter_labels]
        for own, filter_labels in zip(points.cpu().numpy(), labels.cpu().numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=points.dtype, device=points.device)
