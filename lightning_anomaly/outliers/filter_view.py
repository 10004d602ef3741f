"""Score samples by their distance from a reference, without labels, by all filters of a layer.

Each map is reduced to five statistics (`map_statistics`). Each statistic is replaced by its rank among the reference
samples, so that a filter's scale and distribution do not matter. Ranks are used in two forms: normal scores, whose
Mahalanobis distance shows unusual combinations of values, and negative logarithms of two-sided tail probabilities
("tails"), whose distance shows unusual patterns of extreme filters. Both distances are measured along the first
principal components of the reference, from which its own outliers are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.outliers.directions import Directions, Vectors
from lightning_anomaly.outliers.mahalanobis import robust_scale

_KNOTS = 512  # resolution of ranks
_DIRECTIONS = 10, 50  # largest number of principal components of the tails and of the normal scores
_REFITS = 2
_SAMPLES_PER_DIRECTION = 5
_OUTLIER_SCORE = 10  # spreads above the median from which a reference sample is an outlier
_MIN_SAMPLES = 8


class Spread(NamedTuple):
    """Location and scale of squared distances by tails and by normal scores.

    Attributes:
        median: Medians of both distances `(2,)`.
        spread: Their median absolute deviations times 1.4826, the standard deviation of a normal distribution `(2,)`.
    """

    median: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, distances: Tensor) -> Spread:
        """Fit to distances `(m, 2)`; infinite distances are ignored."""
        distances = distances[distances.isfinite().all(1)]
        median, spread = robust_scale(distances)
        spread = torch.where(spread > 0, spread, (distances - median).square().mean(0).sqrt())
        return cls(median, torch.where(spread > 0, spread, 1))

    def scores(self, distances: Tensor) -> Tensor:
        """Compute how many spreads distances `(n, 2)` lie above the median, summed over both `(n,)`."""
        return ((distances - self.median) / self.spread).sum(1)


class ReferenceModel(NamedTuple):
    """The distribution of reference samples in one layer.

    Attributes:
        used: Mask of the V statistics that are finite and vary in the reference `(F * S,)`.
        knots: Sorted reference values of these statistics `(V, Q)`.
        directions: Principal components of the tails and of the normal scores.
    """

    used: Tensor
    knots: Tensor
    directions: list[Directions]

    @classmethod
    def fit(cls, statistics: Tensor) -> ReferenceModel | None:
        """Fit to statistics `(N, F, S)` on the CPU; return None if too few samples are finite or nothing varies.

        Statistics that are not finite in half of the samples or more are ignored, then samples that are not finite.
        """
        flat = statistics.flatten(1).float()
        finite = flat.isfinite()
        usable = finite.sum(0) * 2 > len(flat)
        flat = flat[finite[:, usable].all(1)]
        if len(flat) < _MIN_SAMPLES:
            return None
        used = usable & (flat != flat[:1]).any(0)
        if not used.any():
            return None
        flat = flat if used.all() else flat[:, used]
        knots, vectors = _ranked(flat)
        outliers = _outlier_mask(vectors)
        if outliers.any():
            knots, vectors = _ranked(flat[~outliers])
        inliers = torch.arange(len(vectors[0].vectors), device="cpu")
        counts = zip(vectors, _direction_counts(len(inliers)), strict=True)
        return cls(used, knots, [part.directions(inliers, count) for part, count in counts])

    def mahalanobis_squared(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Compute squared distances `(n, 2)` of statistics `(n, F, S)`, and their tails `(n, V)`.

        The distances are those of tails and of normal scores; they are infinite for samples that are not finite.
        """
        flat = statistics.flatten(1).float()
        if len(self.knots) < len(self.used):
            flat = flat[:, self.used]
        ranked = _tails_and_values(flat, self.knots)
        pairs = zip(self.directions, ranked, strict=True)
        distances = torch.stack([directions.mahalanobis_squared(vectors) for directions, vectors in pairs], 1)
        distances[~flat.abs().amax(1).isfinite()] = torch.inf
        return distances, ranked[0]

    def extreme_filters(self, tails: Tensor, filters: int, count: int) -> Tensor:
        """Find the filters with the largest sums of tails `(n, V)`: indices `(n, count)`, padded with -1."""
        full = tails.new_zeros(len(tails), len(self.used))
        full[:, self.used] = tails
        by_filter = full.view(len(full), filters, len(self.used) // filters).sum(2)
        indices = by_filter.topk(min(count, filters), 1).indices
        return functional.pad(indices, (0, count - indices.shape[1]), value=-1)


def layer_scores(statistics: Tensor) -> Tensor:
    """Compute outlier scores `(N,)` of samples, which are their own reference, from statistics `(N, F, S)`.

    Samples with NaN or infinite values have an infinite score; statistics that are not finite in half of the samples or
    more are ignored. All scores are 0 if too few samples are finite or nothing varies.
    """
    statistics = statistics.cpu()
    model = ReferenceModel.fit(statistics)
    if model is None:
        return statistics.new_zeros(len(statistics), dtype=torch.float32)
    distances, _ = model.mahalanobis_squared(statistics)
    return Spread.fit(distances).scores(distances)


def _outlier_mask(vectors: Sequence[Vectors]) -> Tensor:
    """Find outliers `(N,)` among the samples of `vectors`, the tails and the normal scores.

    Many similar outliers would add a principal component along which none of them is far out. So the components are
    fitted to the least outlying half, which is then selected again by the new distances (a reweighted minimum
    covariance determinant: Rousseeuw and Van Driessen, "A fast algorithm for the minimum covariance determinant
    estimator", 1999).
    """
    scores = vectors[0].vectors.mean(1)  # at first, the mean of the tails
    for _ in range(_REFITS):
        half = scores.argsort(stable=True)[: -(-len(scores) // 2)]
        counts = zip(vectors, _direction_counts(len(half)), strict=True)
        distances = torch.stack([part.mahalanobis_squared(half, count) for part, count in counts], 1)
        scores = Spread.fit(distances[half]).scores(distances)
    outliers = scores >= _OUTLIER_SCORE
    outliers[half] = False
    return outliers


def _direction_counts(samples: int) -> list[int]:
    """Limit the directions to one for five samples; along as many as there are samples, all would be equally far."""
    return [min(count, max(1, samples // _SAMPLES_PER_DIRECTION)) for count in _DIRECTIONS]


def _ranked(flat: Tensor) -> tuple[Tensor, list[Vectors]]:
    """Compute the knots of samples `(n, V)`, and the tails and normal scores of the samples among them."""
    knots = _knots(flat)
    return knots, [Vectors(part) for part in _tails_and_values(flat, knots)]


def _knots(flat: Tensor) -> Tensor:
    """Sort the values of samples `(n, V)` and keep Q of them, evenly spaced: `(V, Q)`."""
    ordered = torch.from_numpy(np.sort(np.ascontiguousarray(flat.T)))  # ten times as fast as torch's
    if len(flat) <= _KNOTS:
        return ordered
    places = torch.linspace(0, len(flat) - 1, _KNOTS, dtype=torch.float64, device="cpu").round().long()
    return ordered[:, places].contiguous()


def _tails_and_values(flat: Tensor, knots: Tensor) -> Tensor:
    """Compute tails and normal scores `(2, n, V)` of values `(n, V)` among knots."""
    # Imported late, so that importing the package does not import numba.
    from lightning_anomaly.outliers.ranks import rank_lookup

    count = knots.shape[1]
    level = torch.arange(2 * count + 1, dtype=torch.float64, device="cpu") / (2 * count)  # at twice each mid-rank
    level = level.clamp(0.5 / count, 1 - 0.5 / count)
    tables = torch.stack([-(2 * torch.minimum(level, 1 - level)).log(), torch.special.ndtri(level)])
    return rank_lookup(flat, knots, tables.to(knots))
