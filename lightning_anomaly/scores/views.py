"""Score samples by their look and their content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.content_score import Content
from lightning_anomaly.scores.distributions import NOTICED, SURPRISING, Scale
from lightning_anomaly.scores.look_score import Look

VIEWS = "look", "content", "label"  # the last one where classes are known
ODD_VIEWS = VIEWS[:2]  # of which an outlier score is the larger one


class SampleView(NamedTuple):
    """Scores of N samples in nats `(N,)`, infinite for NaN, and a reason in words for each, empty if it is ordinary."""

    scores: Tensor
    reasons: tuple[str, ...]


class FittedView(NamedTuple):
    """A model of ordinary samples, and the scale of its measures."""

    model: Look | Content
    scale: Scale

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples, and give reasons for the odd ones."""
        scores, strongest = self.scale.scores(self.model.measure(samples))
        odd = (scores >= NOTICED).nonzero()[:, 0]
        words = self.model.reasons(samples.select(odd), strongest[odd], scores[odd] >= SURPRISING)
        reasons = dict(zip(odd.tolist(), words, strict=True))
        return SampleView(scores, tuple(reasons.get(place, "") for place in range(len(scores))))


def fit_views(samples: SampleStatistics, held_out: SampleStatistics | None = None) -> dict[str, FittedView]:
    """Fit every view that the samples allow; without samples `held_out` to scale it on, up to a tenth may be odd."""
    trusted, scaled = (False, samples) if held_out is None else (True, held_out)
    views = {}
    if (look := Look.fit(samples)) is not None:
        views["look"] = FittedView(look, Scale.fit(look.measure(scaled)))
    if (content := Content.fit(samples, trusted=trusted)) is not None:
        views["content"] = FittedView(content, Scale.fit(content.measure(scaled), summed=True))
    return views


def score_views(views: Mapping[str, FittedView], samples: SampleStatistics) -> dict[str, SampleView]:
    """Score samples by all views."""
    return {name: view.view(samples) for name, view in views.items()}


def view_samples(samples: SampleStatistics) -> dict[str, SampleView]:
    """Score samples by views that were fitted to the same samples."""
    return score_views(fit_views(samples), samples)


def larger_scores(scores: Mapping[str, Tensor], unscored: Tensor) -> Tensor:
    """Return the larger of the look and the content score of each sample `(N,)`; `unscored` without these views."""
    odd = [scores[view] for view in ODD_VIEWS if view in scores]
    return torch.stack(odd).amax(0) if odd else unscored
