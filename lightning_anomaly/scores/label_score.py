"""Does an image belong where it is filed? Compare it with the others of its class, and predict its class from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.content_score import network_sees, two_class_logits
from lightning_anomaly.scores.ridge import Ridge
from lightning_anomaly.scores.scale import SURPRISING, Scale
from lightning_anomaly.scores.views import SampleView

_ROUNDING = 1e-10  # squared distance of features of norm 1 that is rounding
_FEW = 2  # images in a class, up to which they are compared with all
_CLEAR = 0.4  # share of the usual lead of a class, from which on an image is filed wrongly
_WORDS = "filed under {}, looks like {}", "filed under {}, clearly looks like {}"
_KAPPA, _DEVIATIONS = 0.25, 4  # from which on classes tell something; parts of one class by time have up to 0.2


class LabelMeasures(NamedTuple):
    """How n images fit to their classes: NaN if their class is unknown or small."""

    content: Tensor  # log of the squared distance from the mean of the others of its class, infinite for NaN `(n,)`
    label: Tensor  # by how much another class is predicted more than its own, between about -1 and 1 `(n,)`
    looks_like: Tensor  # index of the class that is predicted most `(n,)`


class Label(NamedTuple):
    """A model of C classes of ordinary images."""

    names: tuple[str, ...]
    ridge: Ridge  # predicts them
    means: Tensor  # mean features, scaled to norm 1, of each `(C, D)`
    content: Scale
    label: Scale
    clear: float  # the label measure from which on an image is filed wrongly

    @classmethod
    def fit(cls, samples: SampleStatistics, labels: Sequence[str | None]) -> Label | None:
        """Fit to finite samples; None if labels tell nothing.

        They tell something if the class predicted for an image without itself is its own clearly more often than by
        chance: by Cohen's kappa.
        """
        names = tuple(sorted({name for name in labels if name is not None}))
        targets = class_indices(names, labels)
        if samples.features is None or len(names) < 2:
            return None
        used = targets >= 0
        features, members = samples.features[used].double(), one_hot(targets[used]).double()
        ridge, nothing = Ridge.fit(features, targets[used], len(names)), Scale.fit(torch.zeros(0, 1, device="cpu"))
        means = members.T @ normalize(features) / ridge.counts[:, None]
        fitted = cls(names, ridge, means, nothing, nothing, 0.0)
        measures = fitted.measure(samples, labels, left_out=True)
        known = ~measures.label.isnan()
        if not _agree_beyond_chance(measures.looks_like[known], targets[known]):
            return None
        # Wrong labels hardly move a median of the others, but widen the tail that the scores are of.
        clear = -_CLEAR * measures.label[measures.label < 0].median().item()
        content, label = (Scale.fit(part[known, None]) for part in (measures.content, measures.label))
        return fitted._replace(content=content, label=label, clear=clear)

    def measure(
        self, samples: SampleStatistics, labels: Sequence[str | None], *, left_out: bool = False
    ) -> LabelMeasures:
        """Measure samples; with `left_out` they are those of the fit, and each is left out of it."""
        assert samples.features is not None
        targets = class_indices(self.names, labels)
        own = targets.clamp(min=0)
        counts = self.ridge.counts[own]
        predicted = self.ridge.predict(samples.features, targets if left_out else None)
        squared = (normalize(samples.features.double()) - self.means[own]).square().sum(1)
        known = (targets >= 0) & (counts > _FEW)
        if left_out:
            squared = squared * (counts / (counts - 1)).square()
        else:  # as if one of its class were left out of the fit: it is compared with no more than the images of the fit
            squared = squared / (1 - counts.square().reciprocal())
            predicted = predicted * (1 - one_hot(own, len(self.names)) * (known / counts)[:, None])
        finite = samples.finite_rows(len(own)) & predicted.isfinite().all(1)
        content = torch.where(finite, squared.clamp(min=_ROUNDING).log(), torch.inf).where(known, torch.nan)
        label = margins_over(own, predicted).where(known & finite, torch.nan)
        return LabelMeasures(content, label, predicted.argmax(1))

    def score_by_class(
        self,
        samples: SampleStatistics,
        labels: Sequence[str | None],
        views: Mapping[str, SampleView],
        *,
        left_out: bool = False,
    ) -> tuple[dict[str, SampleView], list[str]]:
        """Score samples, of which other `views` are known: content is that among the others of its class.

        Images whose class is unknown or small keep their content score, and have the label score NaN. Return the views,
        with one named "label", and the class that each image looks like.
        """
        measures = self.measure(samples, labels, left_out=left_out)
        known, before = ~measures.content.isnan(), views["content"]
        content = torch.where(known, self.content.scores(measures.content[:, None])[0], before.scores)
        odd = (content.isfinite() & (content >= SURPRISING) & known).nonzero()[:, 0].tolist()
        reasons = ["" if alone else reason for alone, reason in zip(known.tolist(), before.reasons, strict=True)]
        for row, seen in zip(odd, network_sees(samples.select(odd)), strict=True):
            reasons[row] = f"unlike the others filed under {labels[row]}{seen}"
        looks_like = [self.names[index] for index in measures.looks_like.tolist()]
        label = _label_view(measures.label, self.label, labels, looks_like, _WORDS, self.clear)
        return {**views, "content": SampleView(content, tuple(reasons)), "label": label}, looks_like

    def score_copies(self, features: Tensor, labels: Sequence[str | None]) -> tuple[SampleView, list[str]]:
        """Score the labels of copies of one image, all of the fit, without all of them.

        The label score is NaN where hardly any other image is of the class.
        """
        targets = class_indices(self.names, labels)
        own = targets.clamp(min=0)
        predicted = self.ridge.predict_without(features, targets)
        known = (targets >= 0) & (self.ridge.counts[own] - (targets[:, None] == targets).sum(1) >= _FEW)
        margins = margins_over(own, predicted).where(known, torch.nan)
        looks_like = [self.names[index] for index in predicted.argmax(1).tolist()]
        return _label_view(margins, self.label, labels, looks_like, _WORDS, self.clear), looks_like


def predicted_label_view(logits: Tensor, labels: Sequence[str | None], classes: Sequence[str]) -> SampleView | None:
    """Score how much a network prefers another class to the label of each of N samples; None if they never agree.

    `logits` are `(N, C)`; `classes` name the C classes, which otherwise have the numbers 0 to C - 1. Samples without a
    label have the score NaN.
    """
    logits = two_class_logits(logits)
    names = classes or [*map(str, range(logits.shape[1]))]
    targets, known = class_indices(names, labels), torch.tensor([label is not None for label in labels], device="cpu")
    if (
        len(names) != logits.shape[1]
        or (targets[known] < 0).any()
        or not _agree_beyond_chance(logits.argmax(1)[known], targets[known])
    ):
        return None
    margins = margins_over(targets.clamp(min=0), logits).where(known & logits.isfinite().all(1), torch.nan)
    predicted = [names[index] for index in logits.argmax(1).tolist()]
    scale = Scale.fit(margins[~margins.isnan(), None])
    return _label_view(margins, scale, labels, predicted, ("", "labeled {}, predicted {}"))


def _label_view(
    margins: Tensor,
    scale: Scale,
    labels: Sequence[str | None],
    others: Sequence[str],
    words: tuple[str, str],
    clear: float = 0.0,
) -> SampleView:
    """Score how much another class is preferred to each label, and say so where it is `clear`, or surprising, too."""
    scores, _ = scale.scores(margins[:, None])
    rows = zip(labels, others, (margins > clear).tolist(), (scores >= SURPRISING).tolist(), strict=True)
    return SampleView(
        scores, tuple(words[sure].format(own, other) if wrong else "" for own, other, wrong, sure in rows)
    )


def margins_over(targets: Tensor, predicted: Tensor) -> Tensor:
    """Return by how much the largest other of C numbers `(n, C)` exceeds that of the target `(n,)`.

    Examples:
        >>> margins_over(torch.tensor([1, 2]), torch.tensor([[2.0, 5.0, 1.0]] * 2)).tolist()
        [-3.0, 4.0]
    """
    own = targets[:, None]
    return predicted.scatter(1, own, -torch.inf).amax(1) - predicted.gather(1, own)[:, 0]


def _agree_beyond_chance(found: Tensor, targets: Tensor) -> bool:
    """Return whether found classes are the targets `(n,)` clearly more often than by chance, by Cohen's kappa."""
    if not (count := len(targets)):
        return False
    found_sizes, sizes = (one_hot(part, int(torch.cat([found, targets]).max()) + 1).sum(0) for part in (found, targets))
    share, chance = float((found == targets).double().mean()), float((found_sizes * sizes).sum()) / count**2
    if chance == 1:
        return False
    deviations = (share - chance) / (max(chance, 1 / count) * (1 - chance) / count) ** 0.5
    return (share - chance) / (1 - chance) >= _KAPPA and deviations >= _DEVIATIONS


def class_indices(names: Sequence[str], labels: Sequence[str | None]) -> Tensor:
    """Return the index of each label in the names, -1 if it is none of these."""
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([-1 if name is None else places.get(name, -1) for name in labels], device="cpu").long()
