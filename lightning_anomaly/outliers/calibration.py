"""Turn measures of samples into scores in nats, and scores into p-values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SURPRISING = math.log(20)  # nats from which a score is among the highest twentieth, so that it has a reason

_MOST = 100.0  # nats; beyond them surprises grow only logarithmically, which keeps the order of the samples
_FROM, _TO = 0.75, 0.9  # quantiles between which the slope of the tail is measured; few outliers do not move them
_ROUNDING = 1e-4  # relative difference of scores that are ties
_FLAT = 1e-6  # scale of a tail that is rounding, relative to its start


class Tail(NamedTuple):
    """Tail probabilities of scores among those of ordinary samples, of which up to a tenth may be outliers.

    Up to the 0.9 quantile the probability is empirical. Beyond it the tail is exponential, with the slope between the
    0.75 and the 0.9 quantile. Logarithms of squared Mahalanobis distances have such a tail.

    Attributes:
        ordered: Scores of the ordinary samples, sorted `(n,)`.
        start: Their 0.9 quantile.
        scale: Scale of the exponential tail, in units of the scores; 0 if the tail is flat.
    """

    ordered: Tensor
    start: float
    scale: float

    @classmethod
    def fit(cls, scores: Tensor) -> Tail:
        """Fit to the scores `(n,)` of ordinary samples; infinite scores are ignored."""
        ordered = scores[scores.isfinite()].double().sort().values
        if not len(ordered):
            return cls(ordered, math.inf, 1.0)
        before, start = (ordered[int(share * len(ordered))].item() for share in (_FROM, _TO))
        scale = (start - before) / math.log((1 - _FROM) / (1 - _TO))
        return cls(ordered, start, scale if scale > _FLAT * (1 + abs(start)) else 0.0)

    def surprise(self, scores: Tensor) -> Tensor:
        """Compute the negative logarithms of the tail probabilities of scores `(n,)`, in nats, float64 `(n,)`."""
        scores = scores.double()
        counted = 0.0 - self.share(scores).log()  # not minus zero
        level = -math.log(1 - _TO)
        if not self.scale > 0:
            return torch.where(scores.isinf(), scores, counted)
        surprises = torch.where(
            scores > self.start, level + (scores - self.start) / self.scale, counted.clamp(max=level)
        )
        return torch.where(surprises > _MOST, _MOST + (surprises / _MOST).log(), surprises)

    def share(self, scores: Tensor) -> Tensor:
        """Compute the share of samples, the scored one included, with at least the scores `(n,)`, interpolated."""
        count = len(self.ordered)
        place = torch.searchsorted(self.ordered, scores.contiguous())
        if count > 1:
            place = place.clamp(1, count - 1)
            below, above = self.ordered[place - 1], self.ordered[place]
            place = place - 1 + ((scores - below) / (above - below)).nan_to_num(0, 1, 0).clamp(0, 1)
        return (1 + count - place).double() / (1 + count)


class Scale(NamedTuple):
    """Scores by the largest of several measures, in nats.

    Attributes:
        tails: The distribution of each measure among ordinary samples.
        largest: The distribution of the largest surprise, so that a score is again the negative logarithm of a tail
            probability.
    """

    tails: tuple[Tail, ...]
    largest: Tail

    @classmethod
    def fit(cls, measures: Tensor) -> Scale:
        """Fit to the measures `(n, m)` of ordinary samples."""
        tails = tuple(map(Tail.fit, measures.unbind(1)))
        return cls(tails, Tail.fit(_surprises(tails, measures).amax(1)))

    def scores(self, measures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores in nats `(n,)`, and which of the measures `(n, m)` is the most surprising `(n,)`."""
        surprises, strongest = _surprises(self.tails, measures).max(1)
        return self.largest.surprise(surprises), strongest


def _surprises(tails: tuple[Tail, ...], measures: Tensor) -> Tensor:
    columns = zip(tails, measures.unbind(1), strict=True)
    return torch.stack([tail.surprise(column) for tail, column in columns], 1)


def conformal_p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Compute p-values `(n,)` of scores `(n,)` by sorted calibration scores `(m,)`; NaN for infinite scores.

    Scores that differ by rounding are ties, which count as larger.
    """
    scores = scores.to(calibration)
    larger = len(calibration) - torch.searchsorted(calibration, scores - _ROUNDING * (1 + scores.abs()))
    p_values = (1 + larger).double() / (1 + len(calibration))
    return torch.where(scores.isfinite(), p_values, torch.nan)
