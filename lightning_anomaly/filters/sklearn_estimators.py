"""The literal way, `AnalysisSettings(engine="sklearn")`: scikit-learn's `PCA` and `GaussianMixture` for each filter."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional


def sklearn_pca(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `principal_components` does."""
    pca = PCA(min(2, *rows.shape[1:]), svd_solver="full")
    pairs = [(pca.fit_transform(one_filter), pca.components_.T) for one_filter in rows.numpy()]
    scores, axes = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    missing = (0, 2 - scores.shape[2])
    return functional.pad(scores, missing), functional.pad(axes, missing)


def sklearn_mixtures(points: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """Compute the labels `(F, N)` of `fit_mixtures` with scikit-learn's defaults, from the same start."""
    u11, u12, u22 = factors.unbind(2)
    precisions = torch.stack([u11 * u11 + u12 * u12, u12 * u22, u12 * u22, u22 * u22], 2).reshape(*means.shape, 2)
    labels = []
    for rows, weight, mean, precision in zip(*(t.numpy() for t in (points, weights, means, precisions)), strict=True):
        mixture = GaussianMixture(
            len(weight),
            weights_init=weight / weight.sum(),
            means_init=mean,
            precisions_init=precision,
            init_params="random_from_data",  # its draw is replaced by the start
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it may end at `max_iter`, as in the compiled loops
            labels.append(torch.from_numpy(mixture.fit_predict(rows)))
    return torch.stack(labels)
