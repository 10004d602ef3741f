"""Does an image belong where it is filed? Compare it with the others of its class, and predict its class from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.content_score import network_sees, two_class_logits
from lightning_anomaly.scores.distributions import SURPRISING, Scale
from lightning_anomaly.scores.views import SampleView

_ROUNDING = 1e-10  # squared distance of features of norm 1 that is rounding
_FEW = 2  # images in a class, up to which they are compared with all
_CLEAR = 0.4  # share of the median lead of a class, from which on an image is filed wrongly
_CLEARLY = ", clearly looks like "
_WORDS = "filed under {}, looks like {}", f"filed under {{}}{_CLEARLY}{{}}"
_KAPPA, _DEVIATIONS = 0.25, 4  # from which on classes tell something; parts of one class by time have up to 0.2
_PENALTY = 0.004  # variance added in each direction, relative to the total one
_DIRECTIONS = 512  # at most, in which features are used: those with the most variance, nearly
_ROWS = 256  # images whose features are prepared at a time
_NO_EVIDENCE = torch.finfo(torch.float32).eps ** 2  # variance of features of norm 1 that is no evidence


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
        """Fit to finite samples; None if predictions without the image itself agree hardly better than chance."""
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
        """Score samples by the others of their class; return all `views`, with "label", and the class each looks like.

        Images whose class is unknown or small keep their content score, and have the label score NaN.
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
        """Score the labels of copies of one image, all of the fit, without all of them; NaN if few others are left."""
        targets = class_indices(self.names, labels)
        own = targets.clamp(min=0)
        predicted = self.ridge.predict_without(features, targets)
        known = (targets >= 0) & (self.ridge.counts[own] - (targets[:, None] == targets).sum(1) >= _FEW)
        margins = margins_over(own, predicted).where(known, torch.nan)
        looks_like = [self.names[index] for index in predicted.argmax(1).tolist()]
        return _label_view(margins, self.label, labels, looks_like, _WORDS, self.clear), looks_like


def is_clear(reason: str) -> bool:
    """Return whether the reason of a label score says that an image clearly looks like another class."""
    return _CLEARLY in reason


def predicted_label_view(logits: Tensor, labels: Sequence[str | None], classes: Sequence[str]) -> SampleView | None:
    """Score how much a network prefers another class to the label of each of N samples; None if they never agree.

    `logits` are `(N, C)`, `classes` the names of the C classes, or none. Samples without a label have the score NaN.
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
    """Return by how much the largest other of C numbers `(n, C)` exceeds that of the target `(n,)`."""
    own = targets[:, None]
    return predicted.scatter(1, own, -torch.inf).amax(1) - predicted.gather(1, own)[:, 0]


def _agree_beyond_chance(predicted: Tensor, targets: Tensor) -> bool:
    """Return whether predicted classes are the targets `(n,)` clearly more often than by chance, by Cohen's kappa."""
    if not (count := len(targets)):
        return False
    both = one_hot(torch.stack([predicted, targets])).sum(1)  # sizes of classes
    share, chance = float((predicted == targets).double().mean()), float(both.prod(0).sum()) / count**2
    if chance == 1:
        return False
    deviations = (share - chance) / (max(chance, 1 / count) * (1 - chance) / count) ** 0.5
    return (share - chance) / (1 - chance) >= _KAPPA and deviations >= _DEVIATIONS


def class_indices(names: Sequence[str], labels: Sequence[str | None]) -> Tensor:
    """Return the index of each label in the names, -1 if it is none of these."""
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([-1 if name is None else places.get(name, -1) for name in labels], device="cpu").long()


class Ridge(NamedTuple):
    """A ridge regression that predicts C classes from features.

    An image of a class of n images has a weight proportional to n ** -0.5. Features become their signed square roots
    (Perronnin, Sanchez and Mensink, "Improving the Fisher kernel for large-scale image classification", 2010), scaled
    to norm 1, centered, and both again. Without an image of the fit the prediction is `(p - h y) / (1 - h)`, where p is
    that from all, y its target, and h its leverage; for images left out together, p and y are vectors, and h a matrix.
    """

    counts: Tensor  # images in each class `(C,)`
    weights: Tensor  # of an image of each class; those of all images sum to 1 `(C,)`
    center: Tensor  # the weighted mean of the scaled roots `(D,)`
    mean: Tensor  # that of the vectors that come of them, before they are centered again `(D,)`
    axes: Tensor  # directions of these vectors `(D, k)`, in each of which the variance and the penalty are 1
    coefficients: Tensor  # of what the vectors have along these `(k, C)`

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, classes: int) -> Ridge:
        """Fit to features `(n, D)` of images of the classes `targets` `(n,)`."""
        members = one_hot(targets, classes).double()
        counts = members.sum(0)
        weights = counts.clamp(min=1) ** -0.5 / counts.sqrt().sum()
        of_each = weights[targets]
        parts = [*zip(torch.split(of_each, _ROWS), torch.split(features, _ROWS), strict=True)]
        center = torch.stack([weight @ _signed_roots(part) for weight, part in parts]).sum(0)
        # The covariance times random directions spans the directions with the most variance: Halko, Martinsson and
        # Tropp, "Finding structure with randomness" (2011).
        count, width = features.shape
        drawn = torch.Generator().manual_seed(0)
        directions = torch.randn(
            width, min(count, width, _DIRECTIONS), generator=drawn, dtype=torch.float64, device="cpu"
        )
        mean, spanned = torch.zeros_like(center), torch.zeros_like(directions)
        for weight, part in parts:
            vectors = _centered_roots(part, center)
            mean += weight @ vectors
            spanned += vectors.T @ (weight[:, None] * (vectors @ directions))
        axes = torch.linalg.qr(spanned - torch.outer(mean, mean @ directions))[0]
        along = _along_axes(features, center, mean, axes)
        products = (of_each[:, None] * along).T @ along
        products.diagonal().add_(_PENALTY * products.trace() + _NO_EVIDENCE)
        whitening = torch.linalg.inv(torch.linalg.cholesky(products)).T
        coefficients = whitening.T @ ((of_each[:, None] * along).T @ members)
        return cls(counts, weights, center, mean, axes @ whitening, coefficients)

    def predict(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Predict each class, about 0 to 1, from features `(n, D)`: `(n, C)`.

        `left_out` `(n,)` are the classes of images of the fit, each to be left out of it for itself; -1 for other
        images.
        """
        along = _along_axes(features, self.center, self.mean, self.axes)
        predicted = along @ self.coefficients + self.counts * self.weights
        if left_out is None:
            return predicted
        own = left_out.clamp(min=0)
        leverage = (self.weights[own].where(left_out >= 0, 0) * (1 + along.square().sum(1)))[:, None]
        return (predicted - leverage * one_hot(own, len(self.counts))) / (1 - leverage)

    def predict_without(self, features: Tensor, left_out: Tensor) -> Tensor:
        """Predict each class of some images of the fit without all of them, see `predict`."""
        along, own = _along_axes(features, self.center, self.mean, self.axes), left_out.clamp(min=0)
        leverage = (1 + along @ along.T) * self.weights[own].where(left_out >= 0, 0)
        targets, alone = one_hot(own, len(self.counts)).double(), torch.eye(len(own)).to(leverage)
        errors: Tensor = torch.linalg.solve(alone - leverage, targets - self.predict(features))
        return targets - errors


def _along_axes(features: Tensor, center: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Return what the vectors of features `(n, D)` have along the axes, `(n, k)`."""
    return torch.cat([_centered_roots(part, center) @ axes for part in torch.split(features, _ROWS)]) - mean @ axes


def _centered_roots(features: Tensor, center: Tensor) -> Tensor:
    """Return the roots of features `(n, D)` less their center, scaled to norm 1."""
    return normalize(_signed_roots(features) - center)


def _signed_roots(features: Tensor) -> Tensor:
    """Return the square roots of features `(n, D)` with their signs, scaled to norm 1, float64."""
    return normalize(features.sign() * features.double().abs().sqrt())
