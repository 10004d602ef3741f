"""Which training labels are wrong: how a network sees training images before it memorizes their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_anomaly.scores.label_score import Ridge, class_indices, margins_over
from lightning_anomaly.scores.sample_table import sample_table

if TYPE_CHECKING:
    from pandas import DataFrame

SURE = 0.3  # share of the images that look like a class, with the largest leads: what they contradict is wrong
HARD = 0.1  # share of contradicted labels beyond the wrong ones, up to which a network knows the classes
MOST = 0.3  # share of contradicted labels above which a network is too often wrong itself


class LabelMargins(NamedTuple):
    """How much a network prefers another class to the label of each of n training images."""

    # Margins of its logits; the left-out margins, of what a `Ridge` on its features predicts from the other images; and
    # the lead of this prediction's first class over the second `(3, n)`; NaN where unknown.
    margins: Tensor
    predicted: Tensor  # this prediction's first class `(n,)`; -1 where the lead is NaN
    looks_like: list[str]  # the other class with the largest logit, of each image
    loss: float  # mean cross-entropy of the validation images whose label is known (nats); NaN without any


class KnownLabels(NamedTuple):
    """Labels of the compared images, in the order in which these are run; None where unknown."""

    train: Sequence[str | None]
    val: Sequence[str | None]
    classes: Sequence[str]  # names, if the data set has some
    positions: Sequence[int]  # of the training images in their data set
    names: Sequence[str] | None  # files of these images, if known
    problem: str = ""  # why the labels of training images are unknown
    folder: str = ""  # of these files

    def measure_margins(self, logits: Tensor | None, features: Tensor | None) -> LabelMargins | None:
        """Compute the margins from logits `(n + m, C)` and features `(n + m, D)`, NaN for images that were not read.

        None unless the known labels of training images are some of the C classes.
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
        margins = torch.full((3, count), torch.nan, dtype=torch.float64, device="cpu")
        first = torch.full_like(labels, -1)
        margins[0, known] = margins_over(own, logits)[known]
        if features is not None and (features := features[:count][known]).isfinite().all():
            predicted = Ridge.fit(features, own[known], width).predict(features, left_out=own[known])
            margins[1, known] = margins_over(own[known], predicted)
            first[known] = predicted.argmax(1)
            margins[2, known] = -margins_over(first[known], predicted)
        others = logits.scatter(1, own[:, None], -torch.inf).argmax(1).tolist()
        return LabelMargins(margins, first, [names[other] for other in others], loss)


def share_of_wrong(left_out: Tensor, leads: Tensor, predicted: Tensor) -> tuple[float, float]:
    """Estimate the share of wrong labels from means `(n,)`, NaN if it cannot be, and that of contradicted labels.

    Where the lead is large, a clean label is hardly ever contradicted, and a wrong one nearly always, as it has no part
    in the lead. So it is the share of margins above 0 there, and at most that among all. The leads are compared among
    images that look like one class: wrong labels that come from one class all lower its leads. Wrong labels of images
    with small leads are not counted.
    """
    contradicted = (left_out > 0).double()
    among_all = contradicted.mean().item()
    if left_out.isnan().any() or leads.isnan().any() or among_all > MOST:
        return math.nan, among_all
    sure = torch.zeros_like(contradicted, dtype=torch.bool)
    for first in set(predicted.tolist()):
        alike = (predicted == first).nonzero()[:, 0]
        sure[alike[leads[alike].argsort(descending=True)[: round(SURE * len(alike))]]] = True
    return min(contradicted[sure].mean().item(), among_all), among_all


class MeanMargins:
    """The mean margins of training labels over the validations up to the one with the lowest loss.

    A network learns wrong labels last, so that they have a large margin for long: Pleiss, Zhang, Elenberg and
    Weinberger, "Identifying Mislabeled Data using the Area Under the Margin Ranking" (2020). When the loss rises, it
    has begun to learn them. The share of wrong labels is the largest estimate since the network knows the classes, as
    some networks learn them before, and the last one as long as it does not.
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
        # Of the margins of all validations, and how many judged each image.
        self._sums: Tensor = state_dict.get("sums", torch.zeros(3, 0, device="cpu"))
        self._counts: Tensor = state_dict.get("validations", torch.zeros_like(self._sums))
        # First of the last epochs with a margin above 0, -1 without one.
        self._since: Tensor = state_dict.get("since", torch.full_like(self._sums[0], -1))
        self._lowest: float = state_dict.get("lowest", math.inf)  # loss
        # Mean margins, other classes and epochs at the lowest loss; the share of wrong labels up to it, and whether the
        # network knew the classes then.
        self._best: dict[str, Any] = state_dict.get("best", {})

    def begin_labels(self) -> None:
        """Begin with other labels of the same images: what was wrong still is, but losses are no longer comparable."""
        self._lowest, self._best = math.inf, {}

    def add(self, now: LabelMargins, epoch: int) -> None:
        """Add the margins at a validation, NaN for images that it does not judge; other images begin anew."""
        if self._sums.shape != now.margins.shape:
            self.load_state_dict({"sums": torch.zeros_like(now.margins)})
        seen = ~now.margins.isnan()
        self._counts, self._sums = self._counts + seen, self._sums + now.margins.where(seen, 0)
        since = torch.where(now.margins[0] > 0, torch.where(self._since < 0, epoch, self._since), -1)
        self._since = since.where(seen[0], self._since)
        if not now.loss > self._lowest:  # if it is unknown, every validation counts
            pairs = zip(seen[0].tolist(), now.looks_like, self._best.get("looks_like", now.looks_like), strict=True)
            looks_like = [new if is_seen else old for is_seen, new, old in pairs]
            means, before = self._sums / self._counts, self._best
            judged = ~means[0].isnan()
            share, contradicted = share_of_wrong(means[1, judged], means[2, judged], now.predicted[judged])
            knows = contradicted - share <= HARD
            if before.get("knows"):
                share = max(before["share"], share) if knows else before["share"]
            self._lowest = now.loss
            self._best = {"means": means, "looks_like": looks_like, "since": self._since, "share": share}
            self._best["knows"] = knows or before.get("knows", False)

    def doubts(self, labels: KnownLabels) -> DataFrame:
        """Return the images that were judged by their labels after a first validation as a table of samples.

        `doubt` adds the mean margins of the logits and the left-out margins, each divided by its standard deviation.
        The first, as many as labels that seem to be wrong, are `in_doubt`, see `share_of_wrong`.
        """
        means, since = self._best["means"], self._best["since"].tolist()
        judged = ~means[0].isnan()
        spread = means[:2, judged].std(1, keepdim=True).clamp(min=torch.finfo(means.dtype).tiny)
        doubt = (means[:2] / spread).nan_to_num().sum(0)[judged]
        share, places = self._best["share"], judged.nonzero()[:, 0].tolist()
        first = (
            {*doubt.argsort(descending=True, stable=True)[: round(share * len(doubt))].tolist()} if share >= 0 else ()
        )
        columns = {
            "class": [labels.train[place] or "" for place in places],
            "looks_like": [self._best["looks_like"][place] for place in places],
            "doubt": doubt,
            "left_out": means[1, judged],
            "since": [None if since[place] < 0 else int(since[place]) for place in places],
            "in_doubt": [None if math.isnan(share) else row in first for row in range(len(places))],
        }
        positions = [labels.positions[place] for place in places]
        if labels.names is not None:
            columns["name"] = [labels.names[position] for position in positions]
        return sample_table(columns, positions, labels.folder)
