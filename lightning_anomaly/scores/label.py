"""Does an image belong where it is filed? Judge it by its distances from the mean features of all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.content import network_sees, principal_components, two_sided
from lightning_anomaly.scores.scale import SURPRISING, Scale
from lightning_anomaly.scores.scorer import SampleView

CERTAIN = 1000.0  # nats, the label score of an image that is also filed under another class
_RIDGE = 0.03  # variance that is added in each direction, relative to the total variance within classes
_ROUNDING = torch.finfo(torch.float32).eps ** 2  # variance of features of norm 1 that is no evidence
_PRIOR = 2  # weight of the logarithm of the size of a class
_FEW = 2  # images in a class, up to which they are compared with all
_KAPPA, _DEVIATIONS = 0.25, 4  # from which on classes tell something; parts of one class by time have up to 0.2
_WIDE = 2048  # features, beyond which only those along principal components count


class LabelMeasures(NamedTuple):
    """How n images fit to their classes; NaN if their class is unknown or small, infinite for NaN.

    Attributes:
        content: Logarithm of the squared distance from the mean of the others of its class `(n,)`.
        label: How much nearer the mean of another class is `(n,)`, above 0 if it is the nearest.
        looks_like: Index of the nearest class `(n,)`.
    """

    content: Tensor
    label: Tensor
    looks_like: Tensor


class Label(NamedTuple):
    """A model of the classes of ordinary images.

    Features are scaled to norm 1. Distances are Mahalanobis distances by the covariance within classes, to which a
    multiple of the identity is added. Images that were fitted to are left out of both, exactly, by the formula for a
    matrix with a change of rank one.

    Attributes:
        names: Names of the C classes.
        counts: Number of images in each `(C,)`.
        means: Their whitened means `(C, k)`.
        whitening: Matrix that whitens features `(D, k)`.
        freedom: Degrees of freedom of the covariance.
        content: Scale of `LabelMeasures.content`.
        label: Scale of `LabelMeasures.label`.
    """

    names: tuple[str, ...]
    counts: Tensor
    means: Tensor
    whitening: Tensor
    freedom: int
    content: Scale
    label: Scale

    @classmethod
    def fit(
        cls,
        samples: SampleStatistics,
        labels: Sequence[str | None],
        held_out: tuple[SampleStatistics, Sequence[str | None]] | None = None,
    ) -> Label | None:
        """Fit to finite samples, and scale on held-out ones, by default on the same; None if labels tell nothing.

        They tell something if the nearest class mean, without the image itself, is that of its class clearly more often
        than by chance: by Cohen's kappa.
        """
        names = tuple(sorted({name for name in labels if name is not None}))
        targets = _indices(names, labels)
        used = targets >= 0
        freedom = int(used.sum()) - len(names)
        if samples.features is None or len(names) < 2 or freedom < 2:
            return None
        vectors, members = normalize(samples.features[used].double()), one_hot(targets[used]).double()
        axes = principal_components(vectors, _WIDE) if vectors.shape[1] > _WIDE else None
        vectors = vectors if axes is None else vectors @ axes
        means, counts = members.T @ vectors / members.sum(0)[:, None], members.sum(0)
        centered = vectors - members @ means
        covariance = centered.T @ centered / freedom
        covariance.diagonal().add_(_RIDGE * covariance.trace() + _ROUNDING)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=torch.float64, device="cpu")
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T
        nothing = Scale.fit(torch.zeros(0, 1, device="cpu"))
        whole = whitening if axes is None else axes @ whitening
        fitted = cls(names, counts, means @ whitening, whole, freedom, nothing, nothing)
        if not fitted._told_by(samples, targets):
            return None
        measures = fitted.measure(samples, labels, left_out=True) if held_out is None else fitted.measure(*held_out)
        return fitted._replace(content=_scale(measures.content), label=_scale(measures.label))

    def measure(
        self, samples: SampleStatistics, labels: Sequence[str | None], *, left_out: bool = False
    ) -> LabelMeasures:
        """Measure samples; with `left_out` they are those of the fit, and each is left out of it."""
        targets = _indices(self.names, labels)
        distances, others = self.distances(samples, targets, left_out=left_out)
        expected = distances * others / (others + 1)  # a mean of few images is uncertain
        unlike = (expected - _PRIOR * others.clamp(min=1).log()).masked_fill(others == 0, torch.inf)
        rows = torch.arange(len(targets), device="cpu")
        looks_like, own = unlike.argmin(1), unlike[rows, targets]
        unlike[rows, targets] = torch.inf
        known = (targets >= 0) & (self.counts[targets] > _FEW)
        finite = samples.finite_rows(len(targets)) & distances.isfinite().all(1)
        content = torch.where(finite, expected[rows, targets].log(), torch.inf).where(known, torch.nan)
        return LabelMeasures(content, (own - unlike.amin(1)).where(known & finite, torch.nan), looks_like)

    def distances(self, samples: SampleStatistics, targets: Tensor, *, left_out: bool) -> tuple[Tensor, Tensor]:
        """Compute squared distances of n samples from the means, and how many others are in each class, `(n, C)`.

        `targets` are indices of classes `(n,)`, -1 if unknown.
        """
        assert samples.features is not None
        white = normalize(samples.features.double()) @ self.whitening
        distances = torch.cdist(white, self.means).square()
        others = self.counts.repeat(len(white), 1)
        rows = (targets >= 0).nonzero()[:, 0]
        if not left_out or not len(rows):
            return distances, others
        white, targets = white[rows], targets[rows]
        own = white - self.means[targets]
        leverage, count = own.square().sum(1), self.counts[targets]
        growth = count / (count - 1).clamp(min=1)  # of the distance from a mean without the image
        change = growth / self.freedom / (1 - growth / self.freedom * leverage).clamp(min=1e-6)
        along = (own * white).sum(1)[:, None] - own @ self.means.T
        distances[rows] += change[:, None] * along.square()
        distances[rows, targets] = growth.square() * (leverage + change * leverage.square())
        others[rows, targets] -= 1
        return distances, others

    def _told_by(self, samples: SampleStatistics, targets: Tensor) -> bool:
        """Return whether the nearest means of samples that were fitted to are clearly those of their classes."""
        distances, _ = self.distances(samples, targets, left_out=True)
        known = (targets >= 0) & (self.counts[targets] > _FEW)
        return _agree(distances[known].argmin(1), targets[known])

    def judge(
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
        known = ~measures.content.isnan()
        before = views["content"]
        content = torch.where(known, self.content.scores(measures.content[:, None])[0], before.scores)
        scores = torch.where(measures.label.isnan(), torch.nan, self.label.scores(measures.label[:, None])[0])
        looks_like = [self.names[index] for index in measures.looks_like.tolist()]
        odd = (content.isfinite() & (content >= SURPRISING) & known).nonzero()[:, 0].tolist()
        sees = network_sees(samples.select(odd))
        reasons = ["" if alone else reason for alone, reason in zip(known.tolist(), before.reasons, strict=True)]
        for row, seen in zip(odd, sees, strict=True):
            reasons[row] = f"unlike the others filed under {labels[row]}{seen}"
        moved = ((scores >= SURPRISING) & (measures.label > 0)).tolist()
        filed = [
            f"filed under {label}, looks like {other}" if is_moved else ""
            for label, other, is_moved in zip(labels, looks_like, moved, strict=True)
        ]
        found = {"content": SampleView(content, tuple(reasons)), "label": SampleView(scores, tuple(filed))}
        return {**views, **found}, looks_like


def predicted_view(logits: Tensor, labels: Sequence[str], classes: Sequence[str]) -> SampleView | None:
    """Score how much a network prefers another class to the label of each of N samples; None if they never agree.

    `logits` are `(N, C)`; `classes` name the C classes, which otherwise have the numbers 0 to C - 1.
    """
    logits = two_sided(logits)
    names = classes or [*map(str, range(logits.shape[1]))]
    targets = _indices(names, labels)
    if len(names) != logits.shape[1] or (targets < 0).any() or not _agree(logits.argmax(1), targets):
        return None
    others = logits.scatter(1, targets[:, None], -torch.inf)
    margins = torch.where(
        logits.isfinite().all(1), others.amax(1) - logits.gather(1, targets[:, None])[:, 0], torch.nan
    )
    scores = torch.where(margins.isnan(), torch.nan, _scale(margins).scores(margins[:, None])[0])
    wrong = ((scores >= SURPRISING) & (margins > 0)).tolist()
    predicted = [names[index] for index in others.argmax(1).tolist()]
    rows = zip(labels, predicted, wrong, strict=True)
    reasons = [f"labeled {own}, predicted {other}" if is_wrong else "" for own, other, is_wrong in rows]
    return SampleView(scores, tuple(reasons))


def _agree(found: Tensor, targets: Tensor) -> bool:
    """Return whether found classes are the targets `(n,)` clearly more often than by chance, by Cohen's kappa."""
    if not (count := len(targets)):
        return False
    found_sizes, sizes = (one_hot(part, int(torch.cat([found, targets]).max()) + 1).sum(0) for part in (found, targets))
    share, chance = float((found == targets).double().mean()), float((found_sizes * sizes).sum()) / count**2
    if chance == 1:
        return False
    deviations = (share - chance) / (max(chance, 1 / count) * (1 - chance) / count) ** 0.5
    return (share - chance) / (1 - chance) >= _KAPPA and deviations >= _DEVIATIONS


def _indices(names: Sequence[str], labels: Sequence[str | None]) -> Tensor:
    """Return the index of each label in the names, -1 if it is none of these."""
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([-1 if name is None else places.get(name, -1) for name in labels], device="cpu").long()


def _scale(measures: Tensor) -> Scale:
    return Scale.fit(measures[~measures.isnan(), None])
