"""A better signal, if there is one: chosen on the runs of one seed, reported on all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from matplotlib.figure import Figure

from recipes.experiments.common.curves import (
    after_best,
    auroc,
    correlation,
    late_change,
    layers_of,
    signal,
    smoothed,
)
from recipes.experiments.common.tables import Line, group, is_overfitting, kinds, markdown
from recipes.experiments.h1.search import CANDIDATES
from recipes.experiments.h1.tables import SOURCES, short_runs

__all__ = ["CHOSEN_ON", "CONFIDENCE", "Score", "choice_table", "draw", "score", "search_table"]

CHOSEN_ON = 0  # the seed
_SHOWN = 8  # signals, best first
_WINDOWS = (1, 3)  # epochs over which a signal is averaged
_ALWAYS = ("anomaly fraction", "anomaly fraction, paper's reading", "sparsity")
CONFIDENCE = ("confidence, training less validation", "confidence", "")
_GROWING = ("weight variance", "weight norm", "epoch number")  # grow in any training: controls, not candidates


@dataclass(frozen=True)
class Score:
    """How well a signal follows and tells overfitting.

    Attributes:
        follows: Median over overfitting runs of its rank correlation with the validation loss from the best epoch on.
        tells: AUROC of its late change, overfitting runs against healthy ones of the same network and data, the mean
            over networks and data.
    """

    follows: float
    tells: float

    @property
    def worth(self) -> float:
        """The worse of the two, 1 at best and negative for a signal that goes the other way round."""
        return min(self.follows, 2 * self.tells - 1)

    def __str__(self) -> str:
        return f"{self.follows:+.2f} / {self.tells:.2f}"


def score(lines: Sequence[Line], name: str, reading: str, last: bool, sign: int = 1, window: int = 1) -> Score | None:
    """The score of a signal over some runs; None if it cannot be had, as of hidden units where there are none.

    Args:
        lines: Runs.
        name: See `curves.signal`.
        reading: Likewise.
        last: Whether to take the last convolution alone; else all.
        sign: -1 for a signal that is expected to fall.
        window: Number of epochs over which it is averaged, this one and those before it.
    """
    if not all(layers_of(line, reading) for line in lines):
        return None

    def values(line: Line) -> list[float]:
        layer = layers_of(line, reading)[-1] if last else None
        return smoothed([sign * value for value in signal(line, name, reading, layer)], window)

    curves = {line["key"]: values(line) for line in lines}
    followed = [
        correlation(after_best(run, curves[run["key"]]), after_best(run, signal(run, "val_loss")))
        for run in kinds(lines)[0]
    ]
    told = [
        auroc([late_change(curves[run["key"]]) for run in runs], [is_overfitting(run) for run in runs])
        for runs in group(lines, "network", "data").values()
    ]
    follows, tells = ([value for value in found if value is not None] for found in (followed, told))
    return Score(median(follows), mean(tells)) if follows and tells else None


Sources = Sequence[tuple[str, str, str]]


def _parts(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The choosing runs, those of other seeds and of other networks; those of which there are none are left out."""
    networks = {line["cell"]["network"] for line in lines if line["cell"]["seed"] == CHOSEN_ON}
    short = short_runs(lines)
    known = [line for line in short if line["cell"]["network"] in networks]
    parts = {
        f"chosen on seed {CHOSEN_ON}": [line for line in known if line["cell"]["seed"] == CHOSEN_ON],
        "other seeds": [line for line in known if line["cell"]["seed"] != CHOSEN_ON],
        "another network": [line for line in short if line["cell"]["network"] not in networks],
    }
    return {title: part for title, part in parts.items() if part}


def _ranked(
    parts: dict[str, list[Line]], sources: Sources, always: Sequence[str]
) -> list[tuple[str, str, list[Score | None]]]:
    """The best signals of the choosing runs, which are the first part: name, layers, and scores in all parts.

    The direction of a signal, too, is chosen there, and whether it is averaged over the last three epochs. Those in
    `always` and the trivial controls stand below.
    """
    choosing, *_ = parts.values()
    found = []
    for label, name, reading in sources:
        for last in (False, True) if name not in ("epoch", "confidence") else (False,):
            ways = [(sign, window) for window in _WINDOWS for sign in (1, -1)]
            tried = [(score(choosing, name, reading, last, *way), way) for way in ways]
            best, way = max(tried, key=lambda pair: pair[0].worth if pair[0] else -2.0)
            if best:
                scores = [score(part, name, reading, last, *way) for part in parts.values()]
                found.append((best.worth, label, last, way, scores))
    candidates = sorted((row for row in found if row[1] not in _GROWING), key=lambda row: -row[0])
    below = [row for row in candidates[_SHOWN:] if row[1] in always and not row[2]]
    controls = [row for row in found if row[1] in _GROWING and not row[2]]
    return [
        (_described(label, *way), "last" if last else "all", scores)
        for _, label, last, way, scores in [*candidates[:_SHOWN], *below, *controls]
    ]


def _table(lines: Sequence[Line], sources: Sources, always: Sequence[str]) -> str:
    """The signals that `_ranked` gives, in the parts of the runs."""
    parts = _parts(lines)
    rows = [
        (label, layers, *("-" if own is None else str(own) for own in scores))
        for label, layers, scores in _ranked(parts, sources, always)
    ]
    return markdown(("signal", "layers", *(f"{name} ({len(part)} runs)" for name, part in parts.items())), rows)


def _described(label: str, sign: int, window: int) -> str:
    return f"{'' if sign > 0 else '- '}{label}{f', mean of {window} epochs' if window > 1 else ''}"


def choice_table(lines: Sequence[Line]) -> str:
    """Of the signals that `h1` measures, the best ones."""
    return _table(lines, SOURCES, _ALWAYS)


def draw(lines: Sequence[Line]) -> Figure:
    """The two scores of each signal of `choice_table`, a marker for each part of the runs."""
    parts = _parts(lines)
    rows = _ranked(parts, SOURCES, _ALWAYS)
    figure = Figure(figsize=(10, 0.32 * len(rows) + 1.1), layout="constrained")
    follows, tells = figure.subplots(1, 2, sharey=True)
    for place, (part, marker) in enumerate(zip(parts, "osD", strict=False)):
        found = [(row, own[place]) for row, (_, _, own) in enumerate(rows)]
        known = [(row, own) for row, own in found if own is not None]
        for axis, values in ((follows, [own.follows for _, own in known]), (tells, [own.tells for _, own in known])):
            axis.plot(values, [row for row, _ in known], f"C{place}{marker}", markersize=5, alpha=0.8, label=part)
    for axis, chance, label in ((follows, 0.0, "Spearman with the loss after the best epoch"), (tells, 0.5, "AUROC")):
        axis.axvline(chance, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel(label)
        axis.grid(axis="y", linewidth=0.3)
    follows.set_yticks(range(len(rows)), [f"{label} ({layers})" for label, layers, _ in rows], fontsize=8)
    follows.invert_yaxis()
    follows.set_xticks([-0.5, 0, 0.5, 1])
    tells.legend(fontsize=8)
    return figure


def search_table(lines: Sequence[Line]) -> str:
    """The rules that `search` tries, and a signal from the other end of the network."""
    rules = [(name, "fraction", name) for name in CANDIDATES]
    return _table(lines, [*rules, CONFIDENCE], list(CANDIDATES))
