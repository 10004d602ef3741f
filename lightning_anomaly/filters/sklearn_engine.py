"""scikit-learn's `PCA` and `GaussianMixture` in a loop over filters, to check the compiled engine."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.filters.numba_engine import NumbaEngine
from lightning_anomaly.filters.parameters import MixtureFit, Parameters


class SklearnEngine(NumbaEngine):
    """Computes principal components and mixtures with scikit-learn, from the starts of the numba engine."""

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `NumbaEngine`."""
        scores, axes = zip(*map(_pca, rows.numpy()), strict=True)
        return torch.stack(scores), torch.stack(axes)

    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """See `NumbaEngine`."""
        weights, means, factors = start
        u11, u12, u22 = factors.unbind(2)
        precisions = torch.stack([u11 * u11 + u12 * u12, u12 * u22, u12 * u22, u22 * u22], 2).reshape(*means.shape, 2)
        arguments = zip(*(tensor.numpy() for tensor in (points, weights, means, precisions)), strict=True)
        fits = [_fit(*one_filter, max_iter=max_iter, tol=tol, reg_covar=reg_covar) for one_filter in arguments]
        return MixtureFit(*(torch.from_numpy(np.array(part)) for part in zip(*fits, strict=True)))


def _pca(rows: Any) -> tuple[Tensor, Tensor]:
    """Compute scores `(N, 2)` and axes `(P, 2)` of one filter's rows `(N, P)`."""
    pca = PCA(min(2, *rows.shape), svd_solver="full")
    scores = torch.from_numpy(pca.fit_transform(rows))
    axes = torch.from_numpy(pca.components_).T
    missing = (0, 2 - scores.shape[1])
    return functional.pad(scores, missing), functional.pad(axes, missing)


def _fit(points: Any, weights: Any, means: Any, precisions: Any, **options: float) -> tuple[Any, ...]:
    """Fit the mixture of one filter to its points `(N, 2)`; return the fields of a `MixtureFit`."""
    mixture = GaussianMixture(
        len(weights),
        weights_init=weights / weights.sum(),
        means_init=means,
        precisions_init=precisions,
        init_params="random_from_data",  # its draw is replaced by the start
        random_state=0,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it may end at `max_iter`, as in the compiled loops
        labels = mixture.fit_predict(points)
    factors = mixture.precisions_cholesky_[:, [0, 0, 1], [0, 1, 1]]
    return mixture.weights_, mixture.means_, factors, mixture.lower_bound_, labels, mixture.n_iter_, mixture.converged_
