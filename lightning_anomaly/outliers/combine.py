"""One score out of several views of a sample: the tail probabilities of the image and of what the network makes of it.

A view's score becomes the probability that an ordinary sample has one as large. Fisher's rule adds the negative
logarithms of such probabilities where they are independent ("Statistical Methods for Research Workers", 1925). Those of
filters and classes are not, as both come from the same network, so these count half each: a sample's score is that of
its pixels plus the mean of the network's views. P-values come from the scores of ordinary samples and assume nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

VIEWS = ("pixels", "filters", "classes")

_MOST = 100.0  # nats, beyond which a tail says nothing of how rare a score is: only the order of samples stays
_FROM, _TO = 0.75, 0.9  # quantiles that tell how fast the tail falls; few outliers do not move them


@dataclass(frozen=True, eq=False)
class SampleView:
    """What one view says of N samples.

    Attributes:
        scores: How odd each sample looks `(N,)`, in a unit of the view's own; infinite for one with NaN.
        reasons: What is odd about each, in words.
    """

    scores: Tensor
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Tail:
    """How rare scores are among those of ordinary samples, of which up to a tenth may be outliers.

    Up to the 0.9 quantile it is the share of samples with scores as large. Beyond, where samples are few, an
    exponential tail goes on as steeply as from the 0.75 to the 0.9 quantile; squared distances from a normal
    distribution have such a tail.

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
        larger = len(self.ordered) - torch.searchsorted(self.ordered, scores)
        counted = -((1 + larger).double() / (1 + len(self.ordered))).log()
        level = -math.log(1 - _TO)
        if not self.scale > 0:
            return torch.where(scores.isinf(), scores, counted)
        surprises = torch.where(
            scores > self.start, level + (scores - self.start) / self.scale, counted.clamp(max=level)
        )
        return torch.where(surprises > _MOST, _MOST + (surprises / _MOST).log(), surprises)


def combine(surprises: Mapping[str, Tensor]) -> Tensor:
    """Compute the score of each sample `(n,)` from the views' negative log tail probabilities `(n,)`, in nats."""
    network = [own for name, own in surprises.items() if name != "pixels"]
    parts = [surprises["pixels"]] if "pixels" in surprises else []
    return torch.stack([*parts, torch.stack(network).mean(0)] if network else parts).sum(0)
