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
            NaN if its label is unknown, the latter also without features.
        looks_like: The other class with the largest logit, of each image.
        loss: Mean cross-entropy of the validation images whose label is known (nats); NaN without any.
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
    problem: str = ""  # why the labels of training images are unknown although there are some

    def why_not_judged(self, logits: Tensor | None) -> str:
        """Say why labels are not judged by logits `(n + m, C)`; nothing if there are no labels."""
        label = next((label for label in self.train if label is not None), None)
        if self.problem:
            return f"{self.problem}. Give a data set with one label for each image as `train_inputs`"
        found = "none" if logits is None else logits.shape[1]
        return (
            "" if label is None else f"this needs a logit for each class. Found {found}, and labels such as '{label}'"
        )

    def judge(self, logits: Tensor | None, features: Tensor | None) -> LabelMargins | None:
        """Compute the margins from logits `(n + m, C)` and features `(n + m, D)` of n training and m validation images.

        None unless the known labels of training images are some of the C classes. NaN stands for an image that could
        not be read.
        """
        width = 0 if logits is None else logits.shape[1]
        names = self.classes if len(self.classes) == width else [*map(str, range(width))]
        labels, val = (class_indices(names, part) for part in (self.train, self.val))
        known, val_known = (
            torch.tensor([label is not None for label in part], device="cpu") for part in (self.train, self.val)
        )
        if logits is None or not known.any() or (labels[known] < 0).any():
            return None
        count, read = len(labels), logits.isfinite().all(1)
        known, val_known = known & read[:count], val_known & read[count:]
        val = val[val_known]
        loss = cross_entropy(logits[count:][val_known], val).item() if len(val) and (val >= 0).all() else math.nan
        logits, own = logits[:count].double(), labels.clamp(min=0)
        margins = torch.stack([margins_over(own, logits), torch.full_like(logits[:, 0], torch.nan)])
        margins[0, ~known] = torch.nan
        if features is not None and (features := features[:count][known]).isfinite().all():
            ridge = Ridge.fit(features, own[known], width)
            margins[1, known] = margins_over(own[known], ridge.predict(features, left_out=own[known]))
        others = logits.scatter(1, own[:, None], -torch.inf).argmax(1).tolist()
        return LabelMargins(margins, [names[other] for other in others], loss)


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
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the means in plain types."""
        return {
            "validations": self._counts,
            "sums": self._sums,
            "since": self._since,
            "lowest": self._lowest,
            "best": self._best,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; what is missing is as before the first validation."""
        empty = torch.zeros(2, 0, device="cpu")
        self._sums: Tensor = state_dict.get("sums", empty)  # of the margins of all validations
        # Of the validations that judged each image; in 0.4.0 one number, for all.
        self._counts = torch.as_tensor(state_dict.get("validations", 0), device="cpu").expand_as(self._sums)
        # First of the last epochs with a margin above 0, -1 without one.
        self._since: Tensor = state_dict.get("since", empty[0])
        self._lowest: float = state_dict.get("lowest", math.inf)  # loss
        # Mean margins, other classes and epochs at the lowest loss.
        self._best: dict[str, Any] = state_dict.get("best", {})

    def add(self, now: LabelMargins, epoch: int) -> None:
        """Add the margins at a validation, NaN for images that it does not judge; other images begin anew."""
        if self._sums.shape != now.margins.shape:
            self.load_state_dict({"sums": torch.zeros_like(now.margins), "since": torch.full_like(now.margins[0], -1)})
        seen = ~now.margins.isnan()
        self._counts, self._sums = self._counts + seen, self._sums + now.margins.where(seen, 0)
        since = torch.where(now.margins[0] > 0, torch.where(self._since < 0, epoch, self._since), -1)
        self._since = since.where(seen[0], self._since)
        if not now.loss > self._lowest:  # if it is unknown, every validation counts
            pairs = zip(seen[0].tolist(), now.looks_like, self._best.get("looks_like", now.looks_like), strict=True)
            looks_like = [new if is_seen else old for is_seen, new, old in pairs]
            means = self._sums / self._counts
            self._lowest, self._best = now.loss, {"means": means, "looks_like": looks_like, "since": self._since}

    def ranked(self, labels: KnownLabels) -> list[LabelDoubt]:
        """Rank the images that were judged by their labels after a first validation, the most doubtful first."""
        means, since = self._best["means"], self._best["since"].tolist()
        judged = ~means[0].isnan()
        spread = means[:, judged].std(1, keepdim=True).clamp(min=torch.finfo(means.dtype).tiny)
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
            if judged[place]
        ]
