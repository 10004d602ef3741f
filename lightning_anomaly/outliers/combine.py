"""Combine several views of a sample into one outlier score, in nats, and turn scores into p-values.

Each view's score is converted to a tail probability among ordinary samples. The outlier score is a norm of the negative
logarithms of these probabilities, over pixels, features and logits. Filters count only in models without logits:
elsewhere they do not improve the score (docs/results/outliers.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

VIEWS = ("pixels", "features", "logits", "filters")

_ORDER = 1.5  # of the norm
_MOST = 100.0  # nats; beyond them surprises grow only logarithmically, which keeps the order of the samples
_FROM, _TO = 0.75, 0.9  # quantiles between which the slope of the tail is measured; few outliers do not move them


class SampleView(NamedTuple):
    """Scores of N samples in one view, in any unit `(N,)`, infinite for NaN, and a reason in words for each."""

    scores: Tensor
    reasons: tuple[str, ...]


class Tail(NamedTuple):
    """Tail probabilities of scores among those of ordinary samples, of which up to a tenth may be outliers.

    Up to the 0.9 quantile the probability is empirical. Beyond it the tail is exponential, with the slope between the
    0.75 and the 0.9 quantile. Logarithms of squared Mahalanobis distances have such a tail.

    Attributes:
        ordered: Scores of the ordinary samples, sorted `(n,)`.
        start: Their 0.9 quantile.
        scale: Scale of the exponential tail, in units of the scores.
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
        """Compute the share of samples, the scored one included, with at least the scores `(n,)`, interpolated."""
        count = len(self.ordered)
        place = torch.searchsorted(self.ordered, scores)
        if count > 1:
            place = place.clamp(1, count - 1)
            below, above = self.ordered[place - 1], self.ordered[place]
            place = place - 1 + ((scores - below) / (above - below)).nan_to_num(0, 1, 0).clamp(0, 1)
        return (1 + count - place).double() / (1 + count)


def counted(views: Iterable[str]) -> list[str]:
    """Select the views that enter the score: filters only where there are no logits."""
    names = [*views]
    return [name for name in names if name != "filters" or "logits" not in names]


def ordered_reasons(views: Mapping[str, SampleView], sample: int) -> dict[str, str]:
    """Return each view's reason for a sample, by descending score; views that do not enter the score come last."""
    scoring = counted(views)

    def order(name: str) -> tuple[bool, float]:
        return name not in scoring, -views[name].scores[sample].item()

    return {name: views[name].reasons[sample] for name in sorted(views, key=order)}


def combine(surprises: Mapping[str, Tensor]) -> Tensor:
    """Compute the norm of order 1.5 `(n,)` of the views' negative log tail probabilities `(n,)`, in nats.

    The order is a compromise. In Fisher's sum (order 1) an uninformative view hides what another one sees; the maximum
    (infinite order) ignores moderate evidence in two views.
    """
    views = torch.stack([surprises[name] for name in counted(surprises)])
    scores: Tensor = torch.linalg.vector_norm(views, _ORDER, dim=0)
    return scores


def conformal_p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Compute p-values `(n,)` of scores `(n,)` by sorted calibration scores `(m,)`; NaN for infinite scores."""
    scores = scores.to(calibration)
    larger = len(calibration) - torch.searchsorted(calibration, scores)
    p_values = (1 + larger).double() / (1 + len(calibration))
    return torch.where(scores.isfinite(), p_values, torch.nan)
