"""What an engine does: the operations that take the time, each on many filters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.clustering.moments import calinski_harabasz

__all__ = ["KMEANS_ITERATIONS", "Engine"]

KMEANS_ITERATIONS = 300  # at most, as scikit-learn's KMeans
_LINE = 8  # values in a cache line


class Engine(ABC):
    """The loops of an analysis; the mathematics around them is the same for every engine.

    Points are float64, in units of their spread, on the device that `device` names. No operation changes its arguments,
    and each gives a filter exactly what it would give that filter alone.
    """

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores on the first two principal components `(F, N, 2)` and the components' axes.

        Args:
            rows: Maps `(F, N, P)` as rows of pixels, centred, of filters that are not constant.

        Returns:
            The scores, the second ones zero if there is one pixel only, and axes `(F, P, 2)` of any length. Which of
            its two directions an axis has does not matter. More rows of zeros may follow the P.
        """
        samples, pixels = rows.shape[1:]
        if pixels == 1:
            return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
        # What BLAS and LAPACK round depends on where a matrix lies in memory: zeros put filters on whole cache lines.
        missing = -pixels % _LINE, -samples % _LINE
        rows = functional.pad(rows, (0, missing[0], 0, missing[1])) if any(missing) else rows
        # All eigenvectors: iterating for the first two took two to five times as long, for 25 to 256 pixels. Scores are
        # products with the maps, whichever Gram matrix is the smaller, so that equal maps are exactly equal points.
        if samples < pixels:
            values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
            smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # rounding may leave less than nothing
            axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
        else:
            axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
        axes = axes.flip(2)
        return (rows @ axes)[:, :samples], axes

    @abstractmethod
    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """Centres drawn by k-means++.

        Args:
            points: Points `(F, N, 2)`.
            uniform: A random number from 0 to 1 for each centre `(S, K)`. It chooses among the points in the order of
                their first coordinate, equals in that of their second.

        Returns:
            Centres `(F, S, K, 2)`.
        """

    @abstractmethod
    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """Lloyd's algorithm from several starts, each until its inertia no longer falls.

        Args:
            points: Points `(F, N, 2)`.
            centres: Starts `(F, S, K, 2)`.

        Returns:
            Labels `(F, N)` of the start with the smallest inertia, the first of those equal up to rounding. Of equally
            near centres the first counts; one that loses all its points stays where it is.
        """

    @abstractmethod
    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        """Size, mean x, y and covariances xx, xy, yy `(F, S, K, 6)` of clusters, zeros for empty ones.

        Args:
            points: Points `(F, N, 2)`.
            labels: Labels `(F, S, N)` from 0 to `n_clusters - 1`.
            n_clusters: Number of clusters, K.
        """

    @abstractmethod
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
        """Expectation maximisation, step by step what scikit-learn's `GaussianMixture` does.

        Args:
            points: Points `(F, N, 2)`.
            weights: Weights to start from `(F, S, K)`.
            means: Means to start from `(F, S, K, 2)`.
            factors: `u11`, `u12` and `u22` of the upper triangular U with `U U^T` the precision to start from
                `(F, S, K, 3)`.
            max_iter: See `fit_mixtures`, as for `tol` and `reg_covar`.
            tol: See there.
            reg_covar: See there.

        Returns:
            Weights, means, factors, and as in `MixtureFit` lower bounds, labels, iterations and convergence.
        """

    def calinski_harabasz(self, points: Tensor, labels: Tensor) -> Tensor:
        """The index `(F, M)` of clusterings `(F, M, N)` of points `(F, N, 2)`, see `moments.calinski_harabasz`."""
        return calinski_harabasz(points, labels, self.cluster_moments)

    def look_up(self, values: Tensor, knots: Tensor, beyond: Tensor, tables: Tensor) -> Tensor:
        """What tables hold for the ranks of values among others.

        Args:
            values: Values `(n, V)`, float32; NaN counts as the smallest or the largest.
            knots: What each is ranked among, sorted `(V, Q)`, float32.
            beyond: How many knots are at most as large as each `(V, Q)`, int32.
            tables: Tables `(T, 2 Q + 1)`, float32, with an entry for twice each mid-rank: of the knots that equal a
                value, half are below it.

        Returns:
            The entries `(T, n, V)`, on the device of the values; the same for every engine.
        """
        own = values.T.contiguous()
        left = torch.searchsorted(knots, own)
        place = left.clamp(max=knots.shape[1] - 1)
        rank = left + torch.where(knots.gather(1, place) == own, beyond.gather(1, place), left)
        return tables[:, rank].transpose(1, 2)

    def each(self, work: Callable[[int], Tensor], numbers: Sequence[int], points: Tensor) -> list[Tensor]:
        """The results of work on points for each number of components: in turn, as an operation uses all threads."""
        return [work(number) for number in numbers]

    def device(self, maps: torch.device) -> torch.device:
        """Where to work on maps that lie on a device."""
        return torch.device("cpu")
