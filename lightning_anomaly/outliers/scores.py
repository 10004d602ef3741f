"""How far each sample is from what is ordinary, without a label, by what all the filters of a layer make of it.

A map is summed up in five numbers (`map_statistics`), a sample in those of all filters of a layer. Each number counts
only as its rank among those of the reference samples, so that no filter's scale or shape matters, in two ways: as the
normal score of the rank, which knows on which side it lies, and as the negative logarithm of its two-sided tail
probability, which knows how extreme it is. Both vectors are measured in the directions in which the reference varies
most (a squared Mahalanobis distance in principal components): the scores tell a combination of values that is out of
the ordinary, the tails a pattern of extreme filters that is. Reference samples that are far out themselves have no say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.clustering.engines import Engine
from lightning_anomaly.outliers.directions import Directions, Vectors

__all__ = ["Ordinary", "Spread", "layer_scores"]

_KNOTS = 512  # ranks are told apart this finely
_DIRECTIONS = 10, 50  # of the tails and of the values, at most
_STEPS = 2
_SAMPLES_A_DIRECTION = 5
_FAR = 10  # spreads from the median at which a sample has no say
_FEWEST = 8  # samples; of fewer nothing is ordinary


@dataclass(frozen=True, eq=False)
class Ordinary:
    """What is ordinary in a layer, learnt from reference samples.

    Attributes:
        used: Which of the layer's numbers tell anything `(F * S,)`: those that are finite and vary.
        knots: Sorted values of the reference in each of the V that do `(V, Q)`.
        beyond: How many knots are at most as large as each `(V, Q)`.
        tails: Directions of the tails.
        values: Directions of the normal scores.
        engine: What looks up ranks.
    """

    used: Tensor
    knots: Tensor
    beyond: Tensor
    tails: Directions
    values: Directions
    engine: Engine

    @classmethod
    def fit(cls, statistics: Tensor, engine: Engine) -> Ordinary | None:
        """Learn from statistics `(N, F, S)` on the CPU; None if too few samples are finite or nothing varies.

        A number that is NaN or infinite in more than half of the samples is left out, and so is a sample in which
        another one is.
        """
        learnt = _learn(statistics, engine)
        if learnt is None:
            return None
        pairs = zip((learnt.tails, learnt.values), _DIRECTIONS, strict=True)
        tails, values = (vectors.directions(learnt.near, count) for vectors, count in pairs)
        return cls(learnt.used, learnt.knots, learnt.beyond, tails, values, engine)

    def lengths(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """How far samples are from what is ordinary.

        Args:
            statistics: Statistics `(n, F, S)`, on the device that `to` moved this to.

        Returns:
            Squared distances `(n, 2)` of the tails and of the normal scores, infinite for samples that have NaN or
            infinite values; and the tails `(n, V)`, for `strongest`.
        """
        flat = statistics.flatten(1).float()
        if len(self.knots) < len(self.used):
            flat = flat[:, self.used]
        tails, values = _tails_and_values(flat, self.knots, self.beyond, self.engine)
        lengths = torch.stack([self.tails.lengths(tails), self.values.lengths(values)], 1)
        lengths[~flat.abs().amax(1).isfinite()] = torch.inf
        return lengths, tails

    def strongest(self, tails: Tensor, filters: int, count: int) -> Tensor:
        """The filters with the longest tails, the longest first.

        Args:
            tails: As `lengths` gives them, of the samples in question `(n, V)`.
            filters: Number of the layer's filters, F.
            count: How many to name for each sample.

        Returns:
            Their indices `(n, count)`, -1 where there are no more.
        """
        full = tails.new_zeros(len(tails), len(self.used))
        full[:, self.used] = tails
        by_filter = full.view(len(full), filters, len(self.used) // filters).sum(2)
        found = by_filter.topk(min(count, filters), 1).indices
        return functional.pad(found, (0, count - found.shape[1]), value=-1)

    def to(self, device: torch.device) -> Ordinary:
        """The same on another device."""
        used, knots, beyond = (part.to(device) for part in (self.used, self.knots, self.beyond))
        return Ordinary(used, knots, beyond, self.tails.to(device), self.values.to(device), self.engine)


class _Learnt(NamedTuple):
    """What samples `(N, F, S)` tell of each other.

    Attributes:
        used: See `Ordinary`, as for `knots` and `beyond`.
        knots: See there.
        beyond: See there.
        tails: Of all samples, those that are not finite included.
        values: Likewise.
        near: Positions of those that say what is ordinary `(n,)`.
        complete: Which samples are finite `(N,)`.
    """

    used: Tensor
    knots: Tensor
    beyond: Tensor
    tails: Vectors
    values: Vectors
    near: Tensor
    complete: Tensor


def _learn(statistics: Tensor, engine: Engine) -> _Learnt | None:
    flat = statistics.flatten(1).float()
    finite = flat.isfinite()
    known = finite.sum(0) * 2 > len(flat)
    complete = finite[:, known].all(1)
    near = complete.nonzero()[:, 0]
    if len(near) < _FEWEST:
        return None
    used = known & ((flat != flat[near[:1]]) & complete[:, None]).any(0)
    if not used.any():
        return None
    flat = flat if used.all() else flat[:, used]
    ranked = _ranked(flat, flat[near], engine)
    far = _far_out(*ranked[2:], near)
    if far.any():
        near = near[~far]
        ranked = _ranked(flat, flat[near], engine)
    return _Learnt(used, *ranked, near, complete)


def _far_out(tails: Vectors, values: Vectors, some: Tensor) -> Tensor:
    """Which of some samples, at positions `(m,)`, have no say in what is ordinary, bool `(m,)`.

    Many samples that do not belong, and are alike, make a direction of their own, in which they are ordinary. So it is
    learnt from the half that is least out of it, and that half chosen anew by what was learnt; all that are not far out
    by that count in the end (a reweighted minimum covariance determinant: Rousseeuw and Van Driessen, "A fast algorithm
    for the minimum covariance determinant estimator", 1999).
    """
    scores = tails.mean[some]
    for _ in range(_STEPS):
        half = scores.argsort(stable=True)[: -(-len(scores) // 2)]
        lengths = _lengths(tails, values, some[half])[some]
        scores = Spread.fit(lengths[half]).scores(lengths)
    far = scores >= _FAR
    far[half] = False
    return far


def _lengths(tails: Vectors, values: Vectors, near: Tensor) -> Tensor:
    """Squared distances `(N, 2)` of all samples along directions of those at `near`, one for five of them at most.

    Along as many directions as there are samples all of these are equally far, whatever they are.
    """
    most = max(1, len(near) // _SAMPLES_A_DIRECTION)
    pairs = zip((tails, values), _DIRECTIONS, strict=True)
    return torch.stack([vectors.lengths(near, min(count, most)) for vectors, count in pairs], 1)


def _ranked(flat: Tensor, reference: Tensor, engine: Engine) -> tuple[Tensor, Tensor, Vectors, Vectors]:
    """Knots of a reference and how many are at most as large as each, and among them `flat`'s tails and values."""
    knots = _knots(reference)
    beyond = _beyond(knots)
    tails, values = _tails_and_values(flat, knots, beyond, engine)
    return knots, beyond, Vectors(tails), Vectors(values)


def _knots(flat: Tensor) -> Tensor:
    """Sorted values of samples `(n, V)`, evenly thinned out to at most Q: `(V, Q)`."""
    ordered = torch.from_numpy(np.sort(np.ascontiguousarray(flat.T)))  # ten times as fast as torch's
    if len(flat) <= _KNOTS:
        return ordered
    places = torch.linspace(0, len(flat) - 1, _KNOTS, dtype=torch.float64, device="cpu").round().long()
    return ordered[:, places].contiguous()


def _beyond(knots: Tensor) -> Tensor:
    """How many values of a sorted row are at most as large as each, int32 `(V, Q)`."""
    places = torch.arange(1, knots.shape[1] + 1, dtype=torch.int32, device=knots.device)
    differs = functional.pad(knots[:, 1:] != knots[:, :-1], (0, 1), value=True)
    return torch.where(differs, places, places[-1]).flip(1).cummin(1).values.flip(1)


def _tails_and_values(flat: Tensor, knots: Tensor, beyond: Tensor, engine: Engine) -> tuple[Tensor, Tensor]:
    """-log of the two-sided tail probabilities and normal scores, `(n, V)` each, of values `(n, V)` among knots."""
    tail, score = engine.look_up(flat, knots, beyond, _tables(knots.shape[1]).to(knots))
    return tail, score


def _tables(knots: int) -> Tensor:
    """-log of the two-sided tail probability and normal score of twice each mid-rank among Q knots `(2, 2 Q + 1)`."""
    level = (torch.arange(2 * knots + 1, dtype=torch.float64, device="cpu") / (2 * knots)).clamp(
        0.5 / knots, 1 - 0.5 / knots
    )
    return torch.stack([-(2 * torch.minimum(level, 1 - level)).log(), torch.special.ndtri(level)])


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the lengths of a reference lie.

    Attributes:
        median: Of the tails' and of the values' lengths `(2,)`.
        spread: Their median absolute deviations times 1.4826, which are the standard deviations of normal distributions
            `(2,)`.
    """

    median: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, lengths: Tensor) -> Spread:
        """Of lengths `(m, 2)`, of which those that are infinite have no part in it."""
        lengths = lengths[lengths.isfinite().all(1)]
        median = lengths.median(0).values
        spread = 1.4826 * (lengths - median).abs().median(0).values
        spread = torch.where(spread > 0, spread, (lengths - median).square().mean(0).sqrt())
        return cls(median, torch.where(spread > 0, spread, 1))

    def scores(self, lengths: Tensor) -> Tensor:
        """How many spreads lengths `(n, 2)` are above the median, summed: `(n,)`."""
        return ((lengths - self.median) / self.spread).sum(1)


def layer_scores(statistics: Tensor, engine: Engine) -> Tensor:
    """Outlier scores `(N,)` of samples among themselves, from a layer's statistics `(N, F, S)`, by any engine.

    A sample with NaN or infinite values has an infinite score, unless most samples have: then the filter is left out.
    All are 0 where nothing can be told.
    """
    statistics = statistics.cpu()
    learnt = _learn(statistics, engine)
    if learnt is None:
        return statistics.new_zeros(len(statistics), dtype=torch.float32)
    lengths = _lengths(learnt.tails, learnt.values, learnt.near)
    lengths[~learnt.complete] = torch.inf
    return Spread.fit(lengths).scores(lengths)
