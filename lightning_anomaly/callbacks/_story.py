"""What happened in a run, in sentences with their numbers, and its curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.callbacks._losses import loss_tags, mode_by_name
from lightning_anomaly.filters.agreement import most_singled_out
from lightning_anomaly.filters.anomaly_report import AnomalyReport, layer_table_sentences
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.memorization.stop_rule import MIN_ERRORS, WINDOW
from lightning_anomaly.pages.html_page import four_digits, usual_score
from lightning_anomaly.scores.sample_table import views_of

_NAMED = 3  # samples in a sentence
_MATTERS = 0.01  # relative difference from the best value of a metric, from which on it is a reason to act
_PANELS = [  # title, whether the values are shares, and words and names of these
    ("Gap", True, {"rise above the lowest level": "output/rise"}),
    ("Labels in doubt", True, {"": "output/labels_in_doubt"}),
    ("Anomaly filters", False, {"": "filters/count"}),
    ("Isolated filters", False, {"": "filters/isolated"}),
    ("Sparsity", True, {"map values that are zero or less": "filters/sparsity"}),
]
Rows = Mapping[tuple[int, int], dict[str, float]]  # of validations, by epoch and step: what was measured or logged


class Story:
    """The `actions`, `sentences` and `marks` of a run, in the order in which they are told.

    An action is a text with code in backticks, and optionally an address of the page and the text of a link to it; a
    sentence has what it is about before these. A mark is a name and the number of a validation.
    """

    def __init__(self, rows: Rows, logged: Iterable[str], modes: Mapping[str, str]) -> None:
        self.times = sorted(rows)
        self.rows = [rows[time] for time in self.times]
        self.losses = loss_tags(logged)
        self._loss = self.losses.get("validation", "")
        self._metrics = sorted({*logged} - {*self.losses.values()})
        self._modes = modes
        self.actions: list[tuple[str, ...]] = []
        self.sentences: list[tuple[str, ...]] = []
        self.marks: list[tuple[str, int]] = []
        epochs = [epoch for epoch, _ in self.times]
        self.by_epoch = len({*epochs}) == len(epochs)

    def when(self, at: int) -> str:
        """Name a validation by its epoch, and by its step if epochs have several."""
        epoch, step = self.times[at]
        return f"epoch {epoch}" + ("" if self.by_epoch else f" (step {step:,})")

    def column(self, name: str) -> list[float]:
        """Return the values of all validations; NaN where it was not measured."""
        return [row.get(name, math.nan) for row in self.rows]

    def tell(self, *parts: str) -> None:
        self.sentences.append(parts)

    def _finite(self, name: str) -> dict[int, float]:
        return {at: value for at, value in enumerate(self.column(name)) if math.isfinite(value)}

    def _mode(self, name: str) -> str:
        return self._modes.get(name) or mode_by_name(name)

    def best(self, name: str) -> int | None:
        """Return the validation with the best value of a metric; None if it is not known what is better."""
        values, mode = self._finite(name), self._mode(name)
        return (min if mode == "min" else max)(values, key=values.__getitem__) if values and mode else None

    def tell_best(self, checkpoints: Mapping[str, tuple[str, float]]) -> None:
        """Tell when the metrics of checkpoints, of a path and a score, and the validation loss were best."""
        names = dict.fromkeys([*checkpoints, self._loss, *self._modes, *self._metrics])
        known = [name for name in names if self.best(name) is not None]
        for name in [name for name in known if name in checkpoints or name == self._loss] or known[:1]:
            self._tell_best(name, *checkpoints.get(name, ("", math.nan)), decides=name == known[0])
        if not known:
            self.tell("Validation loss", "Not known: no logged metric is named like one, such as `val_loss`.")
            self.actions.append(("Log a validation loss, such as `val_loss`, to see which weights are best.",))

    def _tell_best(self, name: str, path: str, score: float, decides: bool) -> None:
        values, at = self._finite(name), self.best(name)
        assert at is not None
        best, last = values[at], max(values)
        lowest = "lowest" if self._mode(name) == "min" else "highest"
        self.marks.append((f"{lowest} {name}", at))
        text = f"`{name}` was {lowest} in {self.when(at)}: {best:.3g}."
        before = [abs(value - best) for place, value in values.items() if place < at]
        if at == last:
            text += " This is the end of the run."
            if decides and before and min(before) > _MATTERS * abs(best):
                self.actions.append((f"Train longer: `{name}` was {lowest} in the last validation.",))
        else:
            text += f" In the last validation, {self.when(last)}, it was {values[last]:.3g}."
        kept = path if math.isclose(score, best, rel_tol=1e-4) else ""
        if kept:
            text += f" The weights of {self.when(at)} are in `{kept}`."
        if decides and abs(values[last] - best) > _MATTERS * abs(best):
            of_then = f"the weights of {self.when(at)}, where `{name}` was {lowest}"
            add = f'Keep {of_then}: add `ModelCheckpoint(monitor="{name}")`.'
            self.actions.append((f"Use {of_then}: `{kept}`." if kept else add,))
        self.tell("Validation loss" if name == self._loss else name, text)

    def tell_gap(self, threshold: float, problem: str) -> None:
        """Tell when a gap between training and validation images opened, and whether it is harm, or the `problem`."""
        rises = self._finite("output/rise")
        ratio = "ratio of the errors that the network expects on validation and on training images"
        few_at_the_end = bool(self.rows[-1].get("output/few_errors"))
        few = f"the network expects fewer than {MIN_ERRORS} errors, too few to measure it."
        if opened := [at for at, rise in rises.items() if rise > threshold]:
            first, last = opened[0], max(rises)
            self.marks.append(("gap opened", first))
            text = (
                f"A gap opened in {self.when(first)}: the {ratio} was {100 * rises[first]:.0f}% above its lowest level."
            )
            if last > first:
                text += f" In {self.when(last)} it was {100 * rises[last]:.0f}% above it."
            text += f" Later {few}" if few_at_the_end else ""
            text += self._loss_since(first)
        elif problem and not rises:
            text = f"Not measured: {problem}"
        elif few_at_the_end:
            text = f"Not measured: {few}"
        elif len(rises) <= WINDOW:
            text = f"Not measured: a gap needs more than {WINDOW} validations. Compared: {len(rises)}."
        else:
            most = max(rises.values())
            rose = f"rose by at most {100 * most:.0f}%" if most else "did not rise measurably"
            text = f"No gap opened: the {ratio} {rose} above its lowest level; a gap is more than {100 * threshold:g}%."
        self.tell("Gap", text)

    def _loss_since(self, opened: int) -> str:
        """Say whether the validation loss still fell after a gap opened, which alone is no harm."""
        values, lowest = self._finite(self._loss), self.best(self._loss)
        if lowest is None or opened not in values or opened == max(values):
            return ""
        if lowest > opened:
            fell = f"`{self._loss}` still fell, from {values[opened]:.3g} to {values[lowest]:.3g}"
            return f" That was no reason to stop: {fell} in {self.when(lowest)}."
        return f" `{self._loss}` has not been lower since."

    def tell_labels(self, report: MemorizationReport | None, problem: str) -> None:
        """Tell how many training labels are in doubt; without any the `problem`, if the gap has not told it."""
        if report is None or not len(report.samples):
            why = ", for the same reason." if problem else ": no class is known of each training image."
            note = report and report.notes.get("labels")
            self.tell("Labels", f"Not measured: {note}" if note else f"Not measured{why}")
            return
        looked, in_doubt = len(report.samples), report.doubtful_labels
        text = f"How many of {looked:,} training labels are wrong cannot be estimated from this network."
        link = "#/training%20labels", "Look at the most doubtful, and tick those that are wrong"
        if in_doubt is not None:
            share = f"{len(in_doubt) / looked:.1%}"
            text = f"{len(in_doubt):,} of {looked:,} training labels that were looked at are in doubt ({share})."
        if in_doubt:
            self.actions.append((f"{len(in_doubt):,} training labels are in doubt.", *link))
        self.tell("Labels", text, *(() if in_doubt else link))

    def tell_samples(self, report: AnomalyReport) -> None:
        """Tell which samples are the strangest, and why."""
        if not views_of(report.samples):
            self.tell("Samples", "Not measured: no sample has a score.")
            return
        scores, told = report.outlier_scores, list[str]()
        for sample in report.by_outlier_score[:_NAMED]:
            facts = "; ".join([f"score {scores[sample]:.1f}", *report.outlier_reasons(sample).values()])
            told.append(f"{report.samples['name'][sample]} ({facts})")
        text = f"Strangest of {report.n_samples:,} validation samples: {', '.join(told)}."
        text += f" 95% have a score below {usual_score(scores):.1f}."
        self.tell("Samples", text, "#/strangest%20samples", "Look at them, and tick what does not belong")

    def tell_filters(self, report: AnomalyReport) -> None:
        """Tell which samples many filters single out, and whether the number of anomaly filters follows sparsity."""
        if not report.measured:
            self.tell("Filters", f"Not measured. {' '.join(report.notes.values())}".strip())
            return
        many, filters = most_singled_out(report.layers), sum(len(layer.verdicts) for layer in report.layers.values())
        named = [f"{report.samples['name'][sample]} ({count:,})" for sample, count in [*many.items()][:_NAMED]]
        singled_out = "No sample is singled out by more filters than chance explains."
        if many:
            singled_out = f"Singled out by more of the {filters:,} filters than chance explains: {listed(named)}."
            text = f"{len(many):,} validation samples are singled out by more filters than chance explains."
            self.actions.append((text, "#/singled%20out", "Look at them, and tick what does not belong"))
        counts = layer_table_sentences(report.layers)[-1]
        self.tell("Filters", f"{singled_out} {counts[0].upper()}{counts[1:]}.", "#/overview", "See the filters")

    def story_curves(self, threshold: float) -> dict[str, Any]:
        """Return the curves with values; a line is its name, its values and the place of the best one, if known."""
        shares = {name: all(0 <= value <= 1 for value in self._finite(name).values()) for name in self._metrics}
        panels = [("Loss", False, {name: name for name in self.losses.values()})]
        panels += [(name, share and self._mode(name) == "max", {"": name}) for name, share in shares.items()]
        drawn = list[dict[str, Any]]()
        for title, percent, sources in panels + _PANELS:
            columns = {words: [four_digits(value) for value in self.column(name)] for words, name in sources.items()}
            lines = [
                (words, values, self.best(sources[words]) if sources[words] in (self._loss, *self._metrics) else None)
                for words, values in columns.items()
                if any(value is not None for value in values)
            ]
            line = threshold if title == "Gap" else None
            drawn += [{"title": title, "percent": percent, "threshold": line, "lines": lines}] if lines else []
        return {
            "axis": "epoch" if self.by_epoch else "step",
            "times": [time[not self.by_epoch] for time in self.times],
            "panels": drawn,
            "marks": self.marks,
        }
