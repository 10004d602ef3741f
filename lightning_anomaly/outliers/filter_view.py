"""Score each sample by how far it is from a reference, without labels, using all filters of a layer.

A map is summarized by five numbers (`map_statistics`), a sample by those of all filters of a layer. Each number counts
only by its rank among those of the reference samples, so that no filter's scale or shape matters, in two ways: as the
normal score of the rank, which has a sign, and as the negative logarithm of its two-sided tail probability, which says
how extreme it is. Both vectors are measured in the directions in which the reference varies most (a squared Mahalanobis
distance in principal components): normal scores show unusual combinations of values, tails unusual patterns of extreme
filters. Outliers in the reference itself are left out of it.
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
_DIRECTIONS = 10, 50  # of the tails and of the normal scores, at most
_REFITS = 2
_SAMPLES_PER_DIRECTION = 5
_OUTLIER_SCORE = 10  # spreads above the median from which a reference sample is an outlier itself
_MIN_SAMPLES = 8


class Spread(NamedTuple):
    """Location and scale of the squared distances of a reference.

    Attributes:
        median: Medians of the distances by tails and by normal scores `(2,)`.
        spread: Their median absolute deviations times 1.4826, which are the standard deviations of normal distributions
            `(2,)`.
    """

    median: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, distances: Tensor) -> Spread:
        """Fit to distances `(m, 2)`; infinite ones are left out."""
        distances = distances[distances.isfinite().all(1)]
        median, spread = robust_scale(distances)
        spread = torch.where(spread > 0, spread, (distances - median).square().mean(0).sqrt())
        return cls(median, torch.where(spread > 0, spread, 1))

    def standardized(self, distances: Tensor) -> Tensor:
        """Compute how many spreads distances `(n, 2)` are above the median `(n, 2)`."""
        return (distances - self.median) / self.spread

    def scores(self, distances: Tensor) -> Tensor:
        """Compute the sum of these `(n,)`."""
        return self.standardized(distances).sum(1)


class ReferenceModel(NamedTuple):
    """What reference samples look like in one layer.

    Attributes:
        used: Which of the layer's numbers are finite and vary in the reference `(F * S,)`, V of them.
        knots: Sorted values of the reference `(V, Q)`.
        directions: Those of the tails, and those of the normal scores.
    """

    used: Tensor
    knots: Tensor
    directions: list[Directions]

    @classmethod
    def fit(cls, statistics: Tensor) -> ReferenceModel | None:
        """Fit to statistics `(N, F, S)` on the CPU; None if too few samples are finite or nothing varies.

        A number that is NaN or infinite in half of the samples or more is left out, and so is a sample in which another
        one is.
        """
        fit = _fit(statistics)
        if fit is None:
            return None
        pairs = zip(fit.vectors, _DIRECTIONS, strict=True)
        return cls(fit.used, fit.knots, [vectors.directions(fit.inliers, count) for vectors, count in pairs])

    def mahalanobis_squared(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Compute squared distances `(n, 2)` of statistics `(n, F, S)` by tails and by normal scores, and the tails.

        Distances are infinite for samples with NaN or infinite values; tails are `(n, V)`, for `extreme_filters`.
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
        """Find the indices `(n, count)` of those of F `filters` with the largest sums of tails `(n, V)`.

        The most extreme comes first; -1 stands where there are no more.
        """
        full = tails.new_zeros(len(tails), len(self.used))
        full[:, self.used] = tails
        by_filter = full.view(len(full), filters, len(self.used) // filters).sum(2)
        found = by_filter.topk(min(count, filters), 1).indices
        return functional.pad(found, (0, count - found.shape[1]), value=-1)


def layer_scores(statistics: Tensor) -> Tensor:
    """Compute outlier scores `(N,)` of samples among themselves from a layer's statistics `(N, F, S)`.

    A sample with NaN or infinite values has an infinite score, unless half of the samples or more have: then the filter
    is left out. All scores are 0 where too few samples are finite or nothing varies.
    """
    statistics = statistics.cpu()
    fit = _fit(statistics)
    if fit is None:
        return statistics.new_zeros(len(statistics), dtype=torch.float32)
    distances = _mahalanobis_squared(fit.vectors, fit.inliers)
    distances[~fit.complete] = torch.inf
    return Spread.fit(distances).scores(distances)


class _Fit(NamedTuple):
    """`used` and `knots` of a `ReferenceModel`, and all of its samples.

    Attributes:
        vectors: The tails and the normal scores of all samples, those that are not finite included.
        inliers: Positions of the samples that the model is fitted to `(n,)`.
        complete: Which samples are finite `(N,)`.
    """

    used: Tensor
    knots: Tensor
    vectors: list[Vectors]
    inliers: Tensor
    complete: Tensor


def _fit(statistics: Tensor) -> _Fit | None:
    flat = statistics.flatten(1).float()
    finite = flat.isfinite()
    known = finite.sum(0) * 2 > len(flat)
    complete = finite[:, known].all(1)
    inliers = complete.nonzero()[:, 0]
    if len(inliers) < _MIN_SAMPLES:
        return None
    used = known & ((flat != flat[inliers[:1]]) & complete[:, None]).any(0)
    if not used.any():
        return None
    flat = flat if used.all() else flat[:, used]
    knots, vectors = _ranked(flat, flat[inliers])
    outliers = _outlier_mask(vectors, inliers)
    if outliers.any():
        inliers = inliers[~outliers]
        knots, vectors = _ranked(flat, flat[inliers])
    return _Fit(used, knots, vectors, inliers, complete)


def _outlier_mask(vectors: Sequence[Vectors], selected: Tensor) -> Tensor:
    """Which samples at positions `selected` `(m,)` are outliers among these, bool `(m,)`.

    Many outliers that are alike make a direction of their own, in which they are not far out. So the directions are
    fitted to the half that is least far out, and that half is chosen anew by the result (a reweighted minimum
    covariance determinant: Rousseeuw and Van Driessen, "A fast algorithm for the minimum covariance determinant
    estimator", 1999).
    """
    scores = vectors[0].vectors.mean(1)[selected]  # at first, the mean of the tails
    for _ in range(_REFITS):
        half = scores.argsort(stable=True)[: -(-len(scores) // 2)]
        distances = _mahalanobis_squared(vectors, selected[half])[selected]
        scores = Spread.fit(distances[half]).scores(distances)
    outliers = scores >= _OUTLIER_SCORE
    outliers[half] = False
    return outliers


def _mahalanobis_squared(vectors: Sequence[Vectors], inliers: Tensor) -> Tensor:
    """Squared distances `(N, 2)` of all samples along directions of the inliers, at most one for five of these.

    Along as many directions as there are samples all of these are equally far, whatever they are.
    """
    most = max(1, len(inliers) // _SAMPLES_PER_DIRECTION)
    pairs = zip(vectors, _DIRECTIONS, strict=True)
    return torch.stack([part.mahalanobis_squared(inliers, min(count, most)) for part, count in pairs], 1)


def _ranked(flat: Tensor, reference: Tensor) -> tuple[Tensor, list[Vectors]]:
    """Knots of a reference, and tails and normal scores of `flat` among them."""
    knots = _knots(reference)
    return knots, [Vectors(part) for part in _tails_and_values(flat, knots)]


def _knots(flat: Tensor) -> Tensor:
    """Sorted values of samples `(n, V)`, evenly thinned out to at most Q: `(V, Q)`."""
    ordered = torch.from_numpy(np.sort(np.ascontiguousarray(flat.T)))  # ten times as fast as torch's
    if len(flat) <= _KNOTS:
        return ordered
    places = torch.linspace(0, len(flat) - 1, _KNOTS, dtype=torch.float64, device="cpu").round().long()
    return ordered[:, places].contiguous()


def _tails_and_values(flat: Tensor, knots: Tensor) -> Tensor:
    """-log of the two-sided tail probabilities and normal scores `(2, n, V)` of values `(n, V)` among knots."""
    # Not above: an import of the package does without numba.
    from lightning_anomaly.outliers.ranks import rank_lookup

    count = knots.shape[1]
    level = torch.arange(2 * count + 1, dtype=torch.float64, device="cpu") / (2 * count)  # at twice each mid-rank
    level = level.clamp(0.5 / count, 1 - 0.5 / count)
    tables = torch.stack([-(2 * torch.minimum(level, 1 - level)).log(), torch.special.ndtri(level)])
    return rank_lookup(flat, knots, tables.to(knots))
