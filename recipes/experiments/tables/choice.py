"""Signals that follow and tell overfitting, chosen on the runs of one seed and reported on all others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, mean, median
from typing import NamedTuple

import pandas as pd

from recipes.experiments.tables.curves import auroc, follows, late_change, layers_of, signal
from recipes.experiments.tables.h1 import SOURCES, Source
from recipes.experiments.tables.writer import Frame, kinds, runs

_CHOSEN_ON = 0  # the seed
_SHOWN = 8  # signals, best first
_WINDOWS = (1, 3)  # epochs over which a signal is averaged
_CONFIDENCE = {"confidence, training less validation": ("confidence", "")}
_GROWING = ("weight variance", "weight norm", "epoch number")  # grow in any run: controls, not candidates
_CHANCE = 0.01
# What tells training from validation images: rule, statistic, and whether of the last layer alone.
_STATISTICS = {
    "filters, largest value": ("max", "fraction", False),
    "last convolution": ("max", "fraction", True),
    "mean area": ("max", "auc", False),
    "last convolution's mean area": ("max", "auc", True),
    "filters, mean value": ("mean", "fraction", False),
    "hidden units": ("units", "fraction", False),
}


class Score(NamedTuple):
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
        """The worse of the two, at most 1, and negative for a signal of the opposite direction."""
        return min(self.follows, 2 * self.tells - 1)

    def __str__(self) -> str:
        return f"{self.follows:+.2f} / {self.tells:.2f}"


def score(some: Frame, source: Source, last: bool, sign: int = 1, window: int = 1) -> Score:
    """Score a signal over some runs, of the last convolution alone or of all.

    A `sign` of -1 is for a signal that is expected to fall. A signal is averaged over the last `window` epochs.
    """
    curves = []
    for line in some.line:
        values = [sign * value for value in signal(line, *source, layers_of(line, source[1])[-1] if last else None)]
        curves.append([fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)])
    some = some.assign(curve=curves, change=[late_change(curve) for curve in curves])
    followed = [follows(run.line, run.curve) for run in kinds(some)[0].itertuples()]
    areas = [auroc(list(group.change), list(group.overfitting)) for _, group in some.groupby(["network", "data"])]
    return Score(median(value for value in followed if value is not None), mean(areas))


def _parts(some: Frame) -> dict[str, Frame]:
    """Split runs into the choosing ones, those of other seeds and those of other networks, without empty parts."""
    some = some[~some.long]
    choosing = some.seed == _CHOSEN_ON
    same_network = some.network.isin(some[choosing].network)
    parts = {
        f"chosen on seed {_CHOSEN_ON}": some[same_network & choosing],
        "other seeds": some[same_network & ~choosing],
        "another network": some[~same_network],
    }
    return {title: part for title, part in parts.items() if len(part)}


def ranked(some: Frame, sources: dict[str, Source], always: Sequence[str]) -> Frame:
    """List the best signals of the choosing runs: signal, layers, and a `Score` in each part of the runs.

    The direction of a signal and the averaging over three epochs are also chosen there. Signals in `always` and trivial
    controls are listed below.
    """
    parts = _parts(some)
    choosing, *_ = parts.values()
    ways = [(sign, window) for window in _WINDOWS for sign in (1, -1)]
    found = []
    for label, source in sources.items():
        for last in (False, True) if source[0] not in ("epoch", "confidence") else (False,):
            worths = [score(choosing, source, last, *way).worth for way in ways]
            sign, window = ways[worths.index(max(worths))]
            scores = [score(part, source, last, sign, window) for part in parts.values()]
            name = f"{'' if sign > 0 else '- '}{label}{f', mean of {window} epochs' if window > 1 else ''}"
            found.append((max(worths), label, last, [name, "last" if last else "all", *scores]))
    best_first = sorted((row for row in found if row[1] not in _GROWING), key=lambda row: -row[0])
    below = [row for row in best_first[_SHOWN:] if row[1] in always and not row[2]]
    controls = [row for row in found if row[1] in _GROWING and not row[2]]
    header = ["signal", "layers", *(f"{name} ({len(part)} runs)" for name, part in parts.items())]
    return pd.DataFrame([row[-1] for row in [*best_first[:_SHOWN], *below, *controls]], columns=header)


def measured_signals() -> Frame:
    """The best signals that `h1` measures."""
    return ranked(runs("h1"), SOURCES, ("anomaly fraction", "anomaly fraction, paper's reading", "sparsity"))


def candidates() -> Frame:
    """The rules that `search` tried, and the confidence of the output."""
    some = runs("search")
    tried = list(some.line[0]["epochs"][0]["layers"])
    return ranked(some, {name: ("fraction", name) for name in tried} | _CONFIDENCE, tried)


def alarms() -> Frame:
    """For each network, data set and seed: overfitting / healthy runs with a p-value below 1% after any epoch."""

    def cell(group: Frame, rule: str, statistic: str, last: bool) -> str:
        name = f"p {rule} {statistic}{' last' if last else ''}"
        below = [[min(signal(line, name)) < _CHANCE for line in kind.line if name in line["epochs"][0]]
                 for kind in kinds(group)]  # fmt: skip
        return " / ".join(f"{sum(alarms)} of {len(alarms)}" if alarms else "-" for alarms in below)

    by = ["network", "data", "seed"]
    groups = runs("two_sample").groupby(by)
    rows = [[*key, *(cell(group, *way) for way in _STATISTICS.values())] for key, group in groups]
    return pd.DataFrame(rows, columns=[*by, *_STATISTICS])
