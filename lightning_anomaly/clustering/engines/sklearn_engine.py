"""scikit-learn's own estimators in a loop over the filters: for whoever wants to check the other engines."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.clustering.engines import Engine, load_engine
from lightning_anomaly.clustering.ties import SAME

__all__ = ["ENGINE", "fit_filter"]


class SklearnEngine(Engine):
    """`PCA`, `GaussianMixture` and `calinski_harabasz_score`; the mixtures start where they do with `"auto"`."""

    def __init__(self) -> None:
        self._starts = load_engine("auto")

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        scores, axes = zip(*map(_pca, rows.numpy()), strict=True)
        return torch.stack(scores), torch.stack(axes)

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        return self._starts.kmeans_plus_plus(points, uniform)

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """See `Engine`."""
        return self._starts.kmeans(points, centres)

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        """See `Engine`."""
        return self._starts.cluster_moments(points, labels, n_clusters)

    def em(
        self,
        points: Tensor,
        weights: Tensor,
        means: Tensor,
        factors: Tensor,
        *,
        max_iter: int,
        tol: float,
        reg_covar: float,
    ) -> tuple[Tensor, ...]:
        """See `Engine`; on all cores."""
        u11, u12, u22 = factors.unbind(3)
        precisions = torch.stack([u11 * u11 + u12 * u12, u12 * u22, u12 * u22, u22 * u22], 3).reshape(*means.shape, 2)
        starts = weights.shape[:2]
        fitted = (
            *map(torch.empty_like, (weights, means, factors)),
            points.new_empty(starts),
            points.new_empty(*starts, points.shape[1], dtype=torch.int64),
            points.new_empty(starts, dtype=torch.int64),
            points.new_empty(starts, dtype=torch.bool),
        )
        fit = partial(fit_filter, max_iter=max_iter, tol=tol, reg_covar=reg_covar)
        arguments = zip(*(tensor.numpy() for tensor in (points, weights, means, precisions)), strict=True)
        for index, found in enumerate(Parallel(n_jobs=-1)(delayed(fit)(*own) for own in arguments)):
            for part, value in zip(fitted, found, strict=True):
                part[index] = torch.from_numpy(value)
        return fitted

    def calinski_harabasz(self, points: Tensor, labels: Tensor) -> Tensor:
        """See `Engine`."""

        def index(own: Any, label: Any) -> float:
            clusters, samples = len(set(label.tolist())), len(own)
            if not 1 < clusters < samples:
                return 0.0
            largest = (samples - clusters) / (clusters - 1) / SAME**2  # see `moments.calinski_harabasz`
            equal = len(np.unique(np.column_stack([own, label]), axis=0)) == clusters
            return largest if equal else min(float(calinski_harabasz_score(own, label)), largest)

        values = [
            [index(own, label) for label in filter_labels]
            for own, filter_labels in zip(points.numpy(), labels.numpy(), strict=True)
        ]
        return points.new_tensor(values)


def _pca(rows: Any) -> tuple[Tensor, Tensor]:
    """Scores `(N, 2)` and axes `(P, 2)` of one filter's rows `(N, P)`."""
    pca = PCA(min(2, *rows.shape), svd_solver="full")
    # Equal maps to equal points: from their differences, rounding, random starts make other clusters.
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    scores = torch.from_numpy(pca.fit(rows).transform(distinct)[inverse.ravel()])
    axes = torch.from_numpy(pca.components_).T
    missing = (0, 2 - scores.shape[1])
    return functional.pad(scores, missing), functional.pad(axes, missing)


def fit_filter(
    points: Any, weights: Any, means: Any, precisions: Any, *, max_iter: int, tol: float, reg_covar: float
) -> tuple[Any, ...]:
    """Fit one filter's points `(N, 2)` by `GaussianMixture` from each of S starts, all of them NumPy arrays.

    Args:
        points: Points `(N, 2)`.
        weights: Weights to start from `(S, K)`.
        means: Means to start from `(S, K, 2)`.
        precisions: Precisions to start from `(S, K, 2, 2)`.
        max_iter: See `fit_mixtures`, as for `tol` and `reg_covar`.
        tol: See there.
        reg_covar: See there.

    Returns:
        Weights, means, the three entries of the precisions' factors, lower bounds, labels `(S, N)`, iterations and
        convergence.
    """
    found = []
    for weight, mean, precision in zip(weights, means, precisions, strict=True):
        mixture = GaussianMixture(
            len(weight),
            weights_init=weight / weight.sum(),
            means_init=mean,
            precisions_init=precision,
            init_params="random_from_data",  # whatever it draws is replaced by the start given
            random_state=0,
            max_iter=max_iter,
            tol=tol,
            reg_covar=reg_covar,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in the other engines, it may end at `max_iter`
            label = mixture.fit_predict(points)
        factors = mixture.precisions_cholesky_[:, [0, 0, 1], [0, 1, 1]]
        parameters = mixture.weights_, mixture.means_, factors
        found.append((*parameters, mixture.lower_bound_, label, mixture.n_iter_, mixture.converged_))
    return tuple(np.array(part) for part in zip(*found, strict=True))


ENGINE = SklearnEngine
