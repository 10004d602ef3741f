"""Parameters and fits of mixtures, and the constants that engines share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SAME = 1e-9  # relative difference up to which values are equal; absolute for values below 1
EMPTY = 10 * torch.finfo(torch.float64).eps  # added to every component's count, as in scikit-learn

# Weights `(F, K)`, means `(F, K, 2)`, and factors `(F, K, 3)`: the entries `u11`, `u12`, `u22` of an upper triangular U
# with precision `U U^T`
Parameters = tuple[Tensor, Tensor, Tensor]


class MixtureFit(NamedTuple):
    """Fitted mixtures of F filters, named as in scikit-learn."""

    weights: Tensor  # of the components `(F, K)`
    means: Tensor  # of the components `(F, K, 2)`
    factors: Tensor  # see `Parameters`
    lower_bound: Tensor  # mean log-likelihood per sample before the last M-step (nats) `(F,)`
    labels: Tensor  # most probable component of each sample `(F, N)`
    n_iter: Tensor  # `(F,)`
    converged: Tensor  # whether the last change of the lower bound was below `tol` `(F,)`


def precision_factors(xx: Tensor, xy: Tensor, yy: Tensor, reg_covar: float) -> Tensor:
    """Compute the factors `(F, K, 3)` of precisions, see `Parameters`, from unregularized covariances `(F, K)`."""
    l11 = (xx + reg_covar).sqrt()  # the covariance is L L^T, and U is the transposed inverse of L
    l21 = xy / l11
    l22 = (yy + reg_covar - l21 * l21).clamp(min=0.5 * reg_covar).sqrt()  # at least, despite rounding
    return torch.stack([1 / l11, -l21 / (l11 * l22), 1 / l22], 2)
