"""Gaussian mixtures of every filter at once: batched expectation maximisation with full covariances in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import Engine

__all__ = ["MAX_ITER", "REG_COVAR", "TOL", "MixtureFit", "fit_mixtures"]

# scikit-learn's defaults
MAX_ITER = 100
TOL = 1e-3
REG_COVAR = 1e-6  # the points have unit spread


@dataclass(frozen=True)
class MixtureFit:
    """Fitted mixtures, F filters with S starts each, in scikit-learn's words.

    Attributes:
        weights: Shares of the components `(F, S, K)`.
        means: Centres `(F, S, K, 2)`.
        covariances: Full covariance matrices `(F, S, K, 2, 2)`.
        lower_bound: Mean log-likelihood of a sample under the mixture before the last M-step (nats) `(F, S)`.
        labels: Most probable component of each sample under the fitted mixture `(F, S, N)`.
        n_iter: Iterations done `(F, S)`.
        converged: Whether the last change of the lower bound was below `tol` `(F, S)`.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    lower_bound: Tensor
    labels: Tensor
    n_iter: Tensor
    converged: Tensor


def fit_mixtures(
    points: Tensor,
    weights: Tensor,
    means: Tensor,
    precisions: Tensor,
    engine: Engine,
    *,
    max_iter: int = MAX_ITER,
    tol: float = TOL,
    reg_covar: float = REG_COVAR,
) -> MixtureFit:
    r"""Fit Gaussian mixtures by expectation maximisation, step by step what scikit-learn's `GaussianMixture` does.

    The E-step works on residuals that each component whitens, `y = U^T (x - mu)` with `U U^T` its precision; the M-step
    sums their first and second moments and transforms those back. Whitened residuals are of order one wherever the
    component matters, so a tight cluster far out loses no digits, unlike with sums of squared coordinates.

    Args:
        points: Points `(F, N, 2)`, float64, in units in which `reg_covar` is small.
        weights: Weights to start from `(F, S, K)`.
        means: Means to start from `(F, S, K, 2)`.
        precisions: Inverse covariances to start from `(F, S, K, 2, 2)`.
        engine: What runs the loop. All do the same arithmetic, up to the order of sums.
        max_iter: Largest number of iterations.
        tol: A mixture has converged when its lower bound changes by less than this (nats).
        reg_covar: Added to the variances (squared units of the points).

    Returns:
        The fit. A mixture's result does not depend on the others.

    Examples:
        >>> from lightning_anomaly.clustering.engines import load_engine
        >>> points = torch.tensor([[[-1.0, 0], [-1, 1], [1, 0], [1, 1]]], dtype=torch.float64)
        >>> start = torch.tensor([[[[-1.0, 0], [1, 0]]]], dtype=torch.float64)
        >>> weights, precisions = torch.full((1, 1, 2), 0.5).double(), torch.eye(2).expand(1, 1, 2, 2, 2)
        >>> fit = fit_mixtures(points, weights, start, precisions, load_engine("torch"))
        >>> fit.labels.tolist()
        [[[0, 0, 1, 1]]]
    """
    # U is upper triangular: the last coordinate's precision is its last entry squared.
    p11, p12, p22 = precisions[..., 0, 0], precisions[..., 0, 1], precisions[..., 1, 1]
    u22 = p22.sqrt()
    u12 = p12 / u22
    u11 = (p11 - u12 * u12).clamp(min=torch.finfo(p11.dtype).eps * p11).sqrt()  # rounding may leave less than nothing
    factors = torch.stack([u11, u12, u22], 3)
    weights, means, factors, *rest = engine.em(
        points, weights, means, factors, max_iter=max_iter, tol=tol, reg_covar=reg_covar
    )
    return MixtureFit(weights, means, _covariances(factors), *rest)


def _covariances(factors: Tensor) -> Tensor:
    """Covariances `(..., 2, 2)` of factors `(..., 3)` of the precisions."""
    u11, u12, u22 = factors.unbind(-1)
    l11, l21, l22 = 1 / u11, -u12 / (u11 * u22), 1 / u22  # the inverse of U transposed: the covariance is L L^T
    xx, xy, yy = l11 * l11, l11 * l21, l21 * l21 + l22 * l22
    return torch.stack([xx, xy, xy, yy], -1).reshape(*xx.shape, 2, 2)
