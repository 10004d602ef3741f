"""What happened in a run, in sentences with their numbers, and its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.callbacks._losses import loss_tags
from lightning_anomaly.filters.agreement import agreements, singled_out
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.layer_table import layer_table_sentences
from lightning_anomaly.filters.sample_lists import sample_name
from lightning_anomaly.memorization.error_rise import MIN_ERRORS, WINDOW
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.pages.html_page import four_digits, usual_score

_NAMED = 3  # samples in a sentence
_CURVES = {  # words and names of the values of each panel, after its title and whether they are shares
    ("Gap", True): {"rise above the lowest level": "output/rise"},
    ("Labels in doubt", True): {"share in doubt": "output/labels_in_doubt"},
    ("Filters", False): {"anomaly filters": "filters/count", "isolated filters": "filters/isolated"},
    ("Sparsity", True): {"map values that are zero or less": "filters/sparsity"},
}
Rows = Mapping[tuple[int, int], dict[str, float]]  # of validations, by epoch and step: what was measured or logged


class Story:
    """The `sentences` and `marks` of a run, in the order in which they are told.

    A sentence is what it is about, a text with code in backticks, and optionally an address of the page and the text of
    a link to it. A mark is a name and the number of a validation.
    """

    def __init__(self, rows: Rows) -> None:
        self.times = sorted(rows)
        self.rows = [rows[time] for time in self.times]
        self.losses = loss_tags(name for row in self.rows for name in row)
        self.sentences: list[tuple[str, ...]] = []
        self.marks: list[tuple[str, int]] = []
        epochs = [epoch for epoch, _ in self.times]
        self.by_epoch = len({*epochs}) == len(epochs)

    def tell_when(self, at: int) -> str:
        """Name a validation by its epoch, and by its step if epochs have several."""
        epoch, step = self.times[at]
        return f"epoch {epoch}" + ("" if self.by_epoch else f" (step {step:,})")

    def column(self, name: str) -> list[float]:
        """Return the values of all validations; NaN where it was not measured."""
        return [row.get(name, math.nan) for row in self.rows]

    def tell(self, *parts: str) -> None:
        """Add a sentence."""
        self.sentences.append(parts)

    def tell_loss(self, checkpoints: Mapping[str, tuple[str, float]]) -> None:
        """Tell when the validation loss was lowest, and which of the `{monitor: (path, value)}` has its weights."""
        name = self.losses.get("validation", "")
        values = dict(enumerate(self.column(name)))
        finite = [at for at, value in values.items() if math.isfinite(value)]
        if not finite:
            self.tell("Validation loss", "Not known: no logged metric is named like one, such as `val_loss`.")
            return
        lowest, last = min(finite, key=values.__getitem__), finite[-1]
        self.marks.append((f"lowest {name}", lowest))
        text = f"`{name}` was lowest in {self.tell_when(lowest)}: {values[lowest]:.3g}."
        path, score = checkpoints.get(name, ("", math.nan))
        if lowest == last:
            text += " This is the end of the run: a longer run may be better."
        else:
            text += f" In the last validation, {self.tell_when(last)}, it was {values[last]:.3g}."
            kept = math.isclose(score, values[lowest], rel_tol=1e-4)
            missing = f'No checkpoint has the weights of then: add `ModelCheckpoint(monitor="{name}")`.'
            text += f" The weights of then are in `{path}`: use these." if kept else f" {missing}"
        self.tell("Validation loss", text)

    def tell_gap(self, threshold: float, too_few_errors: bool) -> None:
        """Tell when a gap between training and validation images opened, if it did.

        With `too_few_errors` at the end it was not measured there: these zeros are removed from the curve.
        """
        name = "output/rise"
        for row in reversed(self.rows if too_few_errors else ()):
            if row.get(name):
                break
            row.pop(name, None)
        rises = {at: rise for at, rise in enumerate(self.column(name)) if not math.isnan(rise)}
        ratio = "ratio of the errors that the network expects on validation and on training images"
        few = f"the network expects fewer than {MIN_ERRORS} errors, too few to measure it."
        if opened := [at for at, rise in rises.items() if rise > threshold]:
            first, last = opened[0], max(rises)
            self.marks.append(("gap opened", first))
            text = (
                f"A gap opened in {self.tell_when(first)}: the {ratio} was {100 * rises[first]:.0f}% above its lowest "
                f"level. In {self.tell_when(last)} it was {100 * rises[last]:.0f}% above it."
            )
            text += f" Later {few}" if too_few_errors else ""
        elif too_few_errors:
            text = f"Not measured: {few}"
        elif len(rises) <= WINDOW:
            text = f"Not measured: a gap needs more than {WINDOW} validations. Compared: {len(rises)}."
        else:
            most = max(rises.values())
            rose = f"rose by at most {100 * most:.0f}%" if most else "did not rise measurably"
            text = f"No gap opened: the {ratio} {rose} above its lowest level; a gap is more than {100 * threshold:g}%."
        self.tell("Gap", text)

    def tell_labels(self, report: MemorizationReport | None) -> None:
        """Tell how many training labels are in doubt."""
        if report is None or not report.doubts:
            note = "" if report is None else report.notes.get("labels", "")
            self.tell("Labels", f"Not measured: no class is known of each training image. {note}".strip())
            return
        looked, found = len(report.doubts), report.labels_in_doubt
        text = f"How many of {looked:,} training labels are wrong cannot be estimated from this network."
        if found is not None:
            share = f"{len(found) / looked:.1%}"
            text = f"{len(found):,} of {looked:,} training labels that were looked at are in doubt ({share})."
        link = "Look at the most doubtful, and tick those that are wrong"
        self.tell("Labels", text, "#/training%20labels", link)

    def tell_samples(self, report: AnomalyReport) -> None:
        """Tell which samples are the strangest, and why."""
        scores, told = report.outlier_scores, list[str]()
        for sample in report.by_outlier_score[:_NAMED]:
            facts = "; ".join([f"score {scores[sample]:.1f}", *report.outlier_reasons(sample).values()])
            told.append(f"{sample_name(report, sample)} ({facts})")
        if not report.views:
            self.tell("Samples", "Not measured: no sample has a score.")
            return
        text = f"Strangest of {report.n_samples:,} validation samples: {', '.join(told)}."
        text += f" 95% have a score below {usual_score(scores):.1f}."
        self.tell("Samples", text, "#/strangest%20samples", "Look at them, and tick what does not belong")

    def tell_filters(self, report: AnomalyReport) -> None:
        """Tell how many filters single out samples, in which layers, and whether their number follows sparsity."""
        if not report.measured:
            self.tell("Filters", f"Not measured. {' '.join(report.notes.values())}".strip())
            return
        found = {name: singled_out({name: layer}).any(1) for name, layer in report.layers.items()}
        most = sorted((name for name in found if found[name].any()), key=lambda name: -int(found[name].sum()))
        places = [f"{int(found[name].sum())} of {len(found[name])} in `{name or 'the model'}`" for name in most]
        total, all_filters = (sum(map(count, found.values())) for count in (lambda rows: int(rows.sum()), len))
        text = f"{total:,} of {all_filters:,} filters single out samples{': ' if places else ''}{listed(places)}."
        if groups := agreements(report.layers):
            filters, samples = groups[0]
            text += f" {len(filters):,} of them agree on {listed([sample_name(report, sample) for sample in samples])}."
        counts = [sentence[0].upper() + sentence[1:] for sentence in layer_table_sentences(report.layers)]
        text += f" {'. '.join(counts)}."
        self.tell("Filters", text, "#/overview", "See the filters that agree")

    def story_curves(self, threshold: float) -> dict[str, Any]:
        """Return the curves with values, on one axis of epochs, or of steps if an epoch has several validations."""
        panels = list[dict[str, Any]]()
        for (title, percent), sources in {("Loss", False): {n: n for n in self.losses.values()}, **_CURVES}.items():
            columns = {words: [four_digits(value) for value in self.column(name)] for words, name in sources.items()}
            lines = [(words, values) for words, values in columns.items() if any(v is not None for v in values)]
            line = threshold if title == "Gap" else None
            panels += [{"title": title, "percent": percent, "threshold": line, "lines": lines}] if lines else []
        return {
            "axis": "epoch" if self.by_epoch else "step",
            "times": [time[not self.by_epoch] for time in self.times],
            "panels": panels,
            "marks": self.marks,
        }
