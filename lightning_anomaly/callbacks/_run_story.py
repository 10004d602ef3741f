"""What happened in a run, in sentences with their numbers, and its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import StatisticsError, correlation
from typing import Any, NamedTuple

from lightning_anomaly._internal.tables import listed
from lightning_anomaly.callbacks._loss_names import loss_tags
from lightning_anomaly.filters.agreement import agreements, singled_out
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.filters.table import count_sentences
from lightning_anomaly.pages.page import short, usual_score
from lightning_anomaly.two_sample.report import TwoSampleReport
from lightning_anomaly.two_sample.rise import MIN_ERRORS, WINDOW
from lightning_anomaly.two_sample.stopping import GAP

_FOLLOWS = 0.7  # correlation over the validations from which the count follows sparsity
_FEWEST = 5  # validations for a correlation
_NAMED = 3  # samples and layers in a sentence


@dataclass
class Validation:
    """What was logged or measured at a validation; empty where it was not."""

    epoch: int
    step: int
    losses: dict[str, float] = field(default_factory=dict)
    filters: dict[str, float] = field(default_factory=dict)
    output: dict[str, float] = field(default_factory=dict)


class Sentence(NamedTuple):
    """What it is about, its text with code in backticks, and a link: an address of the page and its text."""

    about: str
    text: str
    address: str = ""
    link: str = ""


class Mark(NamedTuple):
    """A moment of a run: its name and the number of the validation."""

    name: str
    at: int


def validations_of(filters: Sequence[Mapping[str, Any]], output: Sequence[Mapping[str, Any]]) -> list[Validation]:
    """Join the histories of an `AnomalyFilterCallback` and of a `TwoSampleCallback`, without repeated values."""
    joined = dict[tuple[int, int], Validation]()
    for entry in (*filters, *output):
        place = entry["epoch"], entry["step"]
        validation = joined.setdefault(place, Validation(*place))
        validation.losses |= entry.get("losses", {})
        if entry.get("analyzed"):
            validation.filters |= entry["metrics"]
        if entry.get("compares_output"):
            validation.output |= entry["metrics"]
    return [joined[place] for place in sorted(joined)]


class Story:
    """The sentences and marks of a run, in the order in which they are told."""

    def __init__(self, validations: Sequence[Validation]) -> None:
        self.validations = validations
        self.sentences: list[Sentence] = []
        self.marks: list[Mark] = []
        self.losses = loss_tags(name for validation in validations for name in validation.losses)

    def when(self, at: int) -> str:
        """Name a validation by its epoch, and by its step if the epoch has several."""
        found = self.validations[at]
        several = sum(other.epoch == found.epoch for other in self.validations) > 1
        return f"epoch {found.epoch}" + (f" (step {found.step:,})" if several else "")

    def column(self, kind: str, name: str) -> list[float]:
        """Return the values of all validations; NaN where it was not measured."""
        return [getattr(validation, kind).get(name, math.nan) for validation in self.validations]

    def say(self, *parts: Any) -> None:
        """Add a sentence."""
        self.sentences.append(Sentence(*parts))

    def tell_loss(self, checkpoints: Mapping[str, tuple[str, float]]) -> None:
        """Tell when the validation loss was lowest.

        `checkpoints` have the path of the best weights and their value, by the monitored metric.
        """
        name, about = self.losses.get("validation", ""), "Validation loss"
        values = self.column("losses", name)
        finite = [at for at, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            self.say(about, "Not known: no logged metric has the name of a validation loss, such as `val_loss`.")
            return
        lowest, last = min(finite, key=values.__getitem__), finite[-1]
        self.marks.append(Mark(f"lowest {name}", lowest))
        text = f"`{name}` was lowest in {self.when(lowest)}: {values[lowest]:.3g}."
        if lowest != last:
            text += f" In the last validation, {self.when(last)}, it was {values[last]:.3g}."
            path, score = checkpoints.get(name, ("", math.nan))
            if path and math.isclose(score, values[lowest], rel_tol=1e-4):
                text += f" The weights of then are in `{path}`: use these."
            else:
                text += f' No checkpoint has the weights of then: add `ModelCheckpoint(monitor="{name}")`.'
        else:
            text += " This is the end of the run: a longer run may be better."
        self.say(about, text)

    def tell_gap(self, threshold: float, too_few_errors: bool) -> None:
        """Tell when a gap between training and validation images opened, if it did.

        With `too_few_errors` at the end it was not measured there: these zeros are removed from the curve.
        """
        if too_few_errors:
            for validation in reversed(self.validations):
                if validation.output.get("confidence_rise"):
                    break
                validation.output.pop("confidence_rise", None)
        rises = self.column("output", "confidence_rise")
        known = [at for at, rise in enumerate(rises) if not math.isnan(rise)]
        ratio = "ratio of the errors that the network expects on validation and on training images"
        if opened := [at for at in known if rises[at] > threshold]:
            first, last = opened[0], known[-1]
            self.marks.append(Mark("gap opened", first))
            text = (
                f"A gap opened in {self.when(first)}: the {ratio} was {100 * rises[first]:.0f}% above its lowest "
                f"level. In {self.when(last)} it was {100 * rises[last]:.0f}% above it."
            )
            if too_few_errors:
                text += f" Later the network expects fewer than {MIN_ERRORS} errors, too few to measure it."
        elif too_few_errors:
            text = f"Not measured: the network expects fewer than {MIN_ERRORS} errors, too few for a gap."
        elif not known:
            text = "Not measured: the outputs for training and validation images could not be compared."
        elif len(known) <= WINDOW:
            text = f"Not measured: a gap needs more than {WINDOW} validations."
        else:
            most = max(rises[at] for at in known)
            text = (
                f"No gap opened: the {ratio} rose by at most {100 * most:.0f}% above its lowest level, "
                f"and a gap is more than {100 * threshold:g}%."
            )
        self.say("Gap", text)

    def tell_labels(self, report: TwoSampleReport | None) -> None:
        """Tell how many training labels are in doubt."""
        if report is None or not report.doubts:
            note = "" if report is None else report.notes.get("labels", "")
            self.say("Labels", f"Not measured: no class is known of each training image. {note}".strip())
            return
        looked, found = len(report.doubts), report.labels_in_doubt
        if found is None:
            text = f"How many of {looked:,} training labels are wrong cannot be estimated from this network."
        else:
            text = (
                f"{len(found):,} of {looked:,} training labels that were looked at are in doubt "
                f"({len(found) / looked:.1%})."
            )
        self.say("Labels", text, "#/training%20labels", "Look at the most doubtful, and tick those that are wrong")

    def tell_samples(self, report: AnomalyReport) -> None:
        """Tell which samples are the strangest, and why."""
        scores = report.outlier_scores
        strangest = [sample for sample in report.by_outlier_score[:_NAMED] if scores[sample] > 0]
        if not strangest:
            self.say("Samples", "Not measured: no sample has a score.")
            return
        told = []
        for sample in strangest:
            reasons = "; ".join(report.outlier_reasons(sample).values())
            told.append(f"{name_of(report, sample)} (score {scores[sample]:.1f}{reasons and f': {reasons}'})")
        self.say(
            "Samples",
            f"Strangest of {report.n_samples:,} validation samples: {', '.join(told)}. 95% have a score below "
            f"{usual_score(scores):.1f}.",
            "#/strangest%20samples",
            "Look at them, and tick what does not belong",
        )

    def tell_filters(self, report: AnomalyReport) -> None:
        """Tell how many filters single out samples, in which layers, and whether their number follows sparsity."""
        if not report.measured:
            self.say("Filters", f"Not measured. {' '.join(report.notes.values())}".strip())
            return
        found = {name: int(singled_out({name: layer}).any(1).sum()) for name, layer in report.layers.items()}
        sizes = {name: len(layer.verdicts) for name, layer in report.layers.items()}
        most = sorted((name for name in found if found[name]), key=lambda name: -found[name])
        places = [f"{found[name]} of {sizes[name]} in `{name or 'the model'}`" for name in most]
        text = f"{sum(found.values()):,} of {sum(sizes.values()):,} filters single out samples"
        text += f": {listed(places)}." if places else "."
        if groups := agreements(report.layers):
            names = [name_of(report, sample) for sample in groups[0].samples]
            text += f" {len(groups[0].filters):,} of them agree on {listed(names)}."
        counts = [sentence[0].upper() + sentence[1:] for sentence in count_sentences(report.layers)]
        text += f" {'. '.join(counts)}. {self._sparsity()}"
        self.say("Filters", text.strip(), "#/overview", "See the filters that agree")

    def _sparsity(self) -> str:
        pairs = zip(self.column("filters", "fraction"), self.column("filters", "sparsity"), strict=True)
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        try:
            value = correlation(*zip(*known, strict=True)) if len(known) >= _FEWEST else math.nan
        except StatisticsError:  # one of them is constant
            value = math.nan
        if math.isnan(value):
            return ""
        if value >= _FOLLOWS:
            return (
                f"The share of anomaly filters followed sparsity over the validations (correlation {value:.2f}), so it "
                "tells nothing of overfitting."
            )
        return f"The share of anomaly filters did not follow sparsity over the validations (correlation {value:.2f})."

    def curves(self, threshold: float = GAP) -> dict[str, Any]:
        """Return the curves with values, on one axis of epochs, or of steps if an epoch has several validations."""
        losses = [(name, "losses", name) for name in self.losses.values()]
        counts = [("anomaly filters", "filters", "count"), ("isolated filters", "filters", "isolated")]
        panels = [
            ("Loss", False, None, losses),
            ("Gap", True, threshold, [("rise above the lowest level", "output", "confidence_rise")]),
            ("Labels in doubt", True, None, [("share in doubt", "output", "labels_in_doubt")]),
            ("Filters", False, None, counts),
            ("Sparsity", True, None, [("map values that are zero or less", "filters", "sparsity")]),
        ]
        shown = []
        for title, percent, line, sources in panels:
            columns = [(words, self.column(kind, name)) for words, kind, name in sources]
            lines = [
                {"name": words, "values": [short(value) for value in values]}
                for words, values in columns
                if not all(map(math.isnan, values))
            ]
            if lines:
                shown.append({"title": title, "percent": percent, "threshold": line, "lines": lines})
        epochs = [validation.epoch for validation in self.validations]
        by_epoch = len(set(epochs)) == len(epochs)
        return {
            "axis": "epoch" if by_epoch else "step",
            "times": epochs if by_epoch else [validation.step for validation in self.validations],
            "panels": shown,
            "marks": [mark._asdict() for mark in self.marks],
        }


def name_of(report: AnomalyReport, sample: int) -> str:
    """Name a sample of the probe by its file, if that is known."""
    return f"sample {sample}" if report.names is None else report.names[sample]
