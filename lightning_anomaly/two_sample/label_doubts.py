"""Which training labels are wrong: how a network sees training images before it knows their labels by heart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_anomaly.scores.label import class_indices, margins_over
from lightning_anomaly.scores.ridge import Ridge

IN_DOUBT = 0.5  # left-out margin, about -1 to 1; 0.5% of clean labels are above it, at most 2.7%


class LabelMargins(NamedTuple):
    """How much a network prefers another class to the label of each of n training images.

    Attributes:
        margins: Margins of its logits, and of what a `Ridge` on its features predicts from the other images `(2, n)`;
            the latter may be NaN.
        looks_like: The other class with the largest logit, of each image.
        loss: Mean cross-entropy of the validation images (nats); NaN if their labels are unknown.
    """

    margins: Tensor
    looks_like: list[str]
    loss: float


class KnownLabels(NamedTuple):
    """Labels of the compared images, in the order in which these are run; None where unknown."""

    train: Sequence[str | None]
    val: Sequence[str | None]
    classes: Sequence[str]  # names, if the data set has some
    positions: Sequence[int]  # of the training images in their data set
    names: Sequence[str] | None  # files of these images, if known

    def judge(self, logits: Tensor | None, features: Tensor | None) -> LabelMargins | None:
        """Compute the margins from logits `(n + m, C)` and features `(n + m, D)` of n training and m validation images.

        None unless each training image has one of the C classes.
        """
        width = 0 if logits is None else logits.shape[1]
        names = self.classes if len(self.classes) == width else [*map(str, range(width))]
        labels, val = (class_indices(names, part) for part in (self.train, self.val))
        if logits is None or (labels < 0).any():
            return None
        count = len(labels)
        loss = cross_entropy(logits[count:], val).item() if (val >= 0).all() else math.nan
        logits, left_out = logits[:count].double(), torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")
        if features is not None and (features := features[:count]).isfinite().all():
            left_out = margins_over(labels, Ridge.fit(features, labels, width).predict(features, left_out=labels))
        others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1).tolist()
        return LabelMargins(
            torch.stack([margins_over(labels, logits), left_out]), [names[other] for other in others], loss
        )


class LabelDoubt(NamedTuple):
    """How doubtful the label of a training image is.

    Attributes:
        position: Its position in the training set.
        name: Its file, or `image POSITION` if the data set names none.
        label: Its label.
        looks_like: The class that the network prefers to the label, or comes next.
        since: The epoch since which the network has preferred another class at each validation; None if it does not.
        score: Mean margins of the logits and left-out margins, each divided by its standard deviation, added.
        left_out: Mean left-out margin, about -1 to 1, see `LabelMargins`; NaN without features.
    """

    position: int
    name: str
    label: str
    looks_like: str
    since: int | None
    score: float
    left_out: float

    @property
    def in_doubt(self) -> bool:
        """Whether features of the other images predict another class clearly better than the label."""
        return self.left_out > IN_DOUBT

    @property
    def reason(self) -> str:
        """What the network says, in words."""
        since = "" if self.since is None else f" (since epoch {self.since})"
        return f"labeled {self.label}, looks like {self.looks_like}{since}"


class MeanMargins:
    """The mean margins of training labels over the validations up to the one with the lowest loss.

    A network learns wrong labels last, so that they have a large margin for long: Pleiss, Zhang, Elenberg and
    Weinberger, "Identifying Mislabeled Data using the Area Under the Margin Ranking" (2020). When the loss rises, it
    has begun to learn them.
    """

    def __init__(self) -> None:
        self._validations = 0
        self._sums = torch.zeros(2, 0, device="cpu")  # of the margins of all validations
        self._since = torch.zeros(0, device="cpu")  # first of the last epochs with a margin above 0, -1 without one
        self._lowest = math.inf  # loss
        self._best: dict[str, Any] = {}  # mean margins, other classes and epochs at the lowest loss

    def add(self, now: LabelMargins, epoch: int) -> None:
        """Add the margins at a validation; another number of images begins anew."""
        if self._sums.shape != now.margins.shape:
            self.load_state_dict(MeanMargins().state_dict())
            self._sums, self._since = torch.zeros_like(now.margins), torch.full_like(now.margins[0], -1)
        self._validations += 1
        self._sums = self._sums + now.margins
        self._since = torch.where(now.margins[0] > 0, torch.where(self._since < 0, epoch, self._since), -1)
        if not now.loss > self._lowest:  # if it is unknown, every validation counts
            means = self._sums / self._validations
            self._lowest, self._best = now.loss, {"means": means, "looks_like": now.looks_like, "since": self._since}

    def ranked(self, labels: KnownLabels) -> list[LabelDoubt]:
        """Rank the images by their labels after a first validation, the most doubtful first."""
        means, since = self._best["means"], self._best["since"].tolist()
        spread = means.std(1, keepdim=True).clamp(min=torch.finfo(means.dtype).tiny)
        scores = (means / spread).nan_to_num().sum(0)
        return [
            LabelDoubt(
                position := labels.positions[place],
                f"image {position}" if labels.names is None else labels.names[position],
                labels.train[place] or "",
                self._best["looks_like"][place],
                None if since[place] < 0 else int(since[place]),
                scores[place].item(),
                means[1, place].item(),
            )
            for place in scores.argsort(descending=True, stable=True).tolist()
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the means in plain types."""
        return {name.removeprefix("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        vars(self).update({f"_{name}": value for name, value in state_dict.items()})
