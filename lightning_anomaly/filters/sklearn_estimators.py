"""The literal way, `AnalysisSettings(engine="sklearn")`: scikit-learn's `PCA` and `GaussianMixture` for each filter."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional


def sklearn_pca(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `principal_components` does."""
    scores, axes = zip(*map(_sklearn_pca_of_filter, rows.numpy()), strict=True)
    return torch.stack(scores), torch.stack(axes)


def _sklearn_pca_of_filter(rows: Any) -> tuple[Tensor, Tensor]:
    """Compute scores `(N, 2)` and axes `(P, 2)` of one filter's rows `(N, P)`."""
    pca = PCA(min(2, *rows.shape), svd_solver="full")
    scores = torch.from_numpy(pca.fit_transform(rows))
    axes = torch.from_numpy(pca.components_).T
    missing = (0, 2 - scores.shape[1])
    return functional.pad(scores, missing), functional.pad(axes, missing)


def sklearn_mixtures(points: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Compute the labels `(F, N)` of `fit_mixtures` with scikit-learn's defaults, from the same start."""
    u11, u12, u22 = factors.unbind(2)
    precisions = torch.stack([u11 * u11 + u12 * u12, u12 * u22, u12 * u22, u22 * u22], 2).reshape(*means.shape, 2)
    filters = zip(*(tensor.numpy() for tensor in (points, weights, means, precisions)), strict=True)
    return torch.stack([torch.from_numpy(_sklearn_mixture_of_filter(*one_filter)) for one_filter in filters])


def _sklearn_mixture_of_filter(points: Any, weights: Any, means: Any, precisions: Any) -> Any:
    """Fit the mixture of one filter to its points `(N, 2)`, and return the labels `(N,)`."""
    mixture = GaussianMixture(
        len(weights),
        weights_init=weights / weights.sum(),
        means_init=means,
        precisions_init=precisions,
        init_params="random_from_data",  # its draw is replaced by the start
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it may end at `max_iter`, as in the compiled loops
        return mixture.fit_predict(points)
