"""What an engine does: the operations that take the time, each on many filters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

KMEANS_ITERATIONS = 300  # at most, as scikit-learn's KMeans
SAME = 1e-9  # relative difference that is rounding, for values of order one or larger
EMPTY = 10 * torch.finfo(torch.float64).eps  # what scikit-learn adds to every component's count

# Weights `(F, K)`, means `(F, K, 2)`, and `u11`, `u12`, `u22` `(F, K, 3)` of the upper triangular U with `U U^T` the
# precision
Parameters = tuple[Tensor, Tensor, Tensor]


class MixtureFit(NamedTuple):
    """Fitted mixtures of F filters, in scikit-learn's words.

    Attributes:
        weights: Shares of the components `(F, K)`.
        means: Centres `(F, K, 2)`.
        factors: See `Parameters`.
        lower_bound: Mean log-likelihood of a sample under the mixture before the last M-step (nats) `(F,)`.
        labels: Most probable component of each sample under the fitted mixture `(F, N)`.
        n_iter: Iterations done `(F,)`.
        converged: Whether the last change of the lower bound was below `tol` `(F,)`.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    lower_bound: Tensor
    labels: Tensor
    n_iter: Tensor
    converged: Tensor


def precision_factors(xx: Tensor, xy: Tensor, yy: Tensor, reg_covar: float) -> Tensor:
    """Factors `(F, K, 3)` of precisions, see `Parameters`, from covariances `(F, K)` without regularization."""
    l11 = (xx + reg_covar).sqrt()  # the covariance is L L^T, and U the inverse of L transposed
    l21 = xy / l11
    l22 = (yy + reg_covar - l21 * l21).clamp(min=0.5 * reg_covar).sqrt()  # rounding may leave less
    return torch.stack([1 / l11, -l21 / (l11 * l22), 1 / l22], 2)


def load_engine(name: str) -> Engine:
    """Return the engine of a name, see `AnalysisSettings`; what it needs is imported now."""
    name = "numba" if name == "auto" else name
    engine: Engine = getattr(import_module(f"{__package__}.{name}_engine"), f"{name.capitalize()}Engine")()
    return engine


class Engine(ABC):
    """The loops of an analysis; the mathematics around them is the same for every engine.

    Points are float64, in units of their spread, on the device that `device` names. No operation changes its arguments,
    and a filter's result does not depend on the others.
    """

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the scores `(F, N, 2)` on the first two principal components, and their axes `(F, P, 2)`.

        Maps `(F, N, P)` are rows of pixels, centred, of filters that are not constant. The second scores are zero if
        there is one pixel only; axes are of any length and in either direction.
        """
        samples, pixels = rows.shape[1:]
        if pixels == 1:
            return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
        # All eigenvectors: iterating for the first two took two to five times as long, for 25 to 256 pixels. Scores are
        # products with the maps, whichever Gram matrix is the smaller, so that equal maps are equal points.
        if samples < pixels:
            values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
            smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # rounding may leave less than nothing
            axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
        else:
            axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
        axes = axes.flip(2)
        return rows @ axes, axes

    @abstractmethod
    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """Draw centres `(F, S, K, 2)` among points `(F, N, 2)` by k-means++.

        Numbers from 0 to 1, one for each centre `(S, K)`, choose among the points in the order of their first
        coordinate, equals in that of their second.
        """

    @abstractmethod
    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """Run Lloyd's algorithm on points `(F, N, 2)` from starts `(F, S, K, 2)`, until inertias no longer fall.

        Labels `(F, N)` are those of the start with the smallest inertia, the first of those equal up to rounding. Of
        equally near centres the first counts; one that loses all its points stays where it is.
        """

    @abstractmethod
    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """Run expectation maximization on points `(F, N, 2)`, step by step as scikit-learn's `GaussianMixture`.

        A mixture has converged when its lower bound changes by less than `tol` (nats); `reg_covar` is added to the
        variances (squared units of the points, in which it is small).
        """

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the moments of the K clusters of a hard clustering `(F, N)` of points `(F, N, 2)`.

        They are sizes `(F, K)`, means `(F, K, 2)` and covariances xx, xy, yy `(F, K, 3)`; zeros for empty clusters.
        """
        member = (labels[:, None] == torch.arange(n_clusters, device=labels.device)[:, None]).to(points)
        sizes = member.sum(2)
        share = 1 / sizes.clamp(min=1)[..., None]
        means = member @ points * share
        x, y = (points - means.gather(1, labels[..., None].expand_as(points))).unbind(2)
        return sizes, means, member @ torch.stack([x * x, x * y, y * y], 2) * share

    def device(self, maps: torch.device) -> torch.device:
        """Name the device on which to work on maps that lie on a device."""
        return torch.device("cpu")
