"""One score out of several views of a sample: how improbable each finds it, in nats.

A view's score becomes the probability that an ordinary sample has one as large, and a sample's score is a norm of the
negative logarithms of these: of pixels, features and logits. Filters explain a score, but do not improve it, see
docs/results/outliers.md; they count for models that have neither features nor logits. P-values are those of the score
among the scores of calibration samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

VIEWS = ("pixels", "features", "logits", "filters")

_ORDER = 1.5  # of the norm
_MOST = 100.0  # nats, beyond which a tail says nothing of how rare a score is: only the order of samples stays
_FROM, _TO = 0.75, 0.9  # quantiles that tell how fast the tail falls; few outliers do not move them


class SampleView(NamedTuple):
    """What one view says of N samples.

    Attributes:
        scores: How odd each sample looks `(N,)`, in a unit of the view's own; infinite for one with NaN.
        reasons: What is odd about each, in words.
    """

    scores: Tensor
    reasons: tuple[str, ...]


class Tail(NamedTuple):
    """How rare scores are among those of ordinary samples, of which up to a tenth may be outliers.

    Up to the 0.9 quantile it is the share of samples with scores as large. Beyond, where samples are few, an
    exponential tail goes on as steeply as from the 0.75 to the 0.9 quantile. Logarithms of squared Mahalanobis
    distances have such a tail.

    Attributes:
        ordered: The scores of the ordinary samples, sorted `(n,)`.
        start: Their 0.9 quantile.
        scale: Scale of the tail, in the unit of the scores.
    """

    ordered: Tensor
    start: float
    scale: float

    @classmethod
    def fit(cls, scores: Tensor) -> Tail:
        """Fit to the scores `(n,)` of ordinary samples; infinite ones are left out."""
        ordered = scores[scores.isfinite()].double().sort().values
        if not len(ordered):
            return cls(ordered, math.inf, 1.0)
        before, start = (ordered[int(share * len(ordered))].item() for share in (_FROM, _TO))
        return cls(ordered, start, (start - before) / math.log((1 - _FROM) / (1 - _TO)))

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
        """Compute which share of ordinary samples, with the sample itself, has scores as large as `(n,)`: `(n,)`.

        Between the scores of two samples it is interpolated, so that no two scores are alike.
        """
        count = len(self.ordered)
        place = torch.searchsorted(self.ordered, scores)
        if count > 1:
            place = place.clamp(1, count - 1)
            below, above = self.ordered[place - 1], self.ordered[place]
            place = place - 1 + ((scores - below) / (above - below)).nan_to_num(0, 1, 0).clamp(0, 1)
        return (1 + count - place).double() / (1 + count)


def counted(views: Iterable[str]) -> list[str]:
    """Name the views that a score is made of: filters only count where there are no logits."""
    names = [*views]
    return [name for name in names if name != "filters" or "logits" not in names]


def ordered_reasons(views: Mapping[str, SampleView], sample: int) -> dict[str, str]:
    """Return the reasons of all views for a sample: those that count by their scores, then those that only explain."""
    known = counted(views)

    def order(name: str) -> tuple[bool, float]:
        return name not in known, -views[name].scores[sample].item()

    return {name: views[name].reasons[sample] for name in sorted(views, key=order)}


def combine(surprises: Mapping[str, Tensor]) -> Tensor:
    """Compute the score of each sample `(n,)` from the views' negative log tail probabilities `(n,)`, in nats.

    It is their norm of order 1.5. Of order 1 it would be Fisher's sum, in which a view that knows nothing hides what
    another one sees, and of infinite order the largest alone, which forgets what two of them half see.
    """
    views = torch.stack([surprises[name] for name in counted(surprises)])
    scores: Tensor = torch.linalg.vector_norm(views, _ORDER, dim=0)
    return scores
