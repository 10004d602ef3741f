"""The interface of an engine: the expensive operations, each on many filters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

KMEANS_ITERATIONS = 300  # at most, like scikit-learn's KMeans
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


def load_engine(name: str) -> Engine:
    """Import and return the engine with a name, see `AnalysisSettings`."""
    name = "numba" if name == "auto" else name
    engine: Engine = getattr(import_module(f"{__package__}.{name}_engine"), f"{name.capitalize()}Engine")()
    return engine


class Engine(ABC):
    """The loops of an analysis.

    Points are float64, in units of their spread, on the engine's `device`. No operation changes its arguments, and a
    filter's result does not depend on other filters.
    """

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the scores `(F, N, 2)` on the first two principal components, and their axes `(F, P, 2)`.

        `rows` are centred maps `(F, N, P)` of filters that are not constant. If P is 1, the second scores are zero.
        Axes have any length and either direction.
        """
        samples, pixels = rows.shape[1:]
        if pixels == 1:
            return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
        # Computes all eigenvectors: iterating for the first two took two to five times as long, for 25 to 256 pixels.
        # Scores are always products with the maps, so that equal maps give equal points.
        if samples < pixels:
            values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
            smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # positive despite rounding
            axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
        else:
            axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
        axes = axes.flip(2)
        return rows @ axes, axes

    @abstractmethod
    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """Draw centres `(F, S, K, 2)` among points `(F, N, 2)` by k-means++.

        Random numbers `uniform` `(S, K)` from 0 to 1 choose among the points, sorted by first and second coordinate.
        """

    @abstractmethod
    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """Run Lloyd's algorithm on points `(F, N, 2)` from starts `(F, S, K, 2)`, until inertias no longer fall.

        Returns the labels `(F, N)` of the first start with the smallest inertia, up to rounding. Of equally near
        centres the first one wins. A centre without points does not move.
        """

    @abstractmethod
    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """Run expectation maximization on points `(F, N, 2)`, with the steps of scikit-learn's `GaussianMixture`.

        A mixture has converged when its lower bound changes by less than `tol` (nats). `reg_covar` is added to the
        variances (squared units of the points).
        """

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute sizes `(F, K)`, means `(F, K, 2)` and covariances xx, xy, yy `(F, K, 3)` of clusters of points.

        `points` are `(F, N, 2)`, `labels` `(F, N)`. Empty clusters give zeros.
        """
        member = (labels[:, None] == torch.arange(n_clusters, device=labels.device)[:, None]).to(points)
        sizes = member.sum(2)
        share = 1 / sizes.clamp(min=1)[..., None]
        means = member @ points * share
        x, y = (points - means.gather(1, labels[..., None].expand_as(points))).unbind(2)
        return sizes, means, member @ torch.stack([x * x, x * y, y * y], 2) * share

    def device(self, maps: torch.device) -> torch.device:
        """Return the device on which to analyze maps of a device."""
        return torch.device("cpu")
