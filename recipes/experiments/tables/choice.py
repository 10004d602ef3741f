"""Signals that follow overfitting and tell it, chosen on the runs of one seed and reported on all others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, mean, median
from typing import NamedTuple

import pandas as pd

from recipes.experiments.tables.curves import auroc, follows, late_change, layers_of, signal
from recipes.experiments.tables.h1 import SOURCES, Source
from recipes.experiments.tables.writer import Frame, kinds, runs, table

_CHOSEN_ON = 0  # the seed
_SHOWN = 8  # signals, best first
_WINDOWS = (1, 3)  # epochs over which a signal is averaged
_CONFIDENCE = {"confidence, training less validation": ("confidence", "")}
_GROWING = ("weight variance", "weight norm", "epoch number")  # grow in any run: controls, not candidates
_CHANCE = 0.01
# What tells training from validation images: the rule, the statistic, and whether of the last layer alone.
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
        """The worse of the two, 1 at best and negative for a signal that goes the other way round."""
        return min(self.follows, 2 * self.tells - 1)

    def __str__(self) -> str:
        return f"{self.follows:+.2f} / {self.tells:.2f}"


def score(some: Frame, source: Source, last: bool, sign: int = 1, window: int = 1) -> Score:
    """The score of a signal over some runs, of the last convolution alone or of all.

    A `sign` of -1 is for a signal that is expected to fall. The window is the number of epochs, this one and those
    before it, over which a signal is averaged.
    """
    curves = []
    for line in some.line:
        values = [sign * value for value in signal(line, *source, layers_of(line, source[1])[-1] if last else None)]
        curves.append([fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)])
    some = some.assign(curve=curves, change=[late_change(curve) for curve in curves])
    followed = [follows(run.line, run.curve) for run in kinds(some)[0].itertuples()]
    told = [auroc(list(group.change), list(group.overfitting)) for _, group in some.groupby(["network", "data"])]
    return Score(median(value for value in followed if value is not None), mean(told))


def _parts(some: Frame) -> dict[str, Frame]:
    """The choosing runs, those of other seeds and of other networks; those of which there are none are left out."""
    choosing = some.seed == _CHOSEN_ON
    known = some.network.isin(some[choosing].network)
    some, choosing, known = (each[~some.long] for each in (some, choosing, known))
    parts = {
        f"chosen on seed {_CHOSEN_ON}": some[known & choosing],
        "other seeds": some[known & ~choosing],
        "another network": some[~known],
    }
    return {title: part for title, part in parts.items() if len(part)}


def ranked(some: Frame, sources: dict[str, Source], always: Sequence[str]) -> Frame:
    """The best signals of the choosing runs: signal, layers, and a `Score` in each part of the runs.

    The direction of a signal, too, is chosen there, and whether it is averaged over the last three epochs. Those in
    `always` and the trivial controls stand below.
    """
    parts = _parts(some)
    choosing, *_ = parts.values()
    found = []
    for label, source in sources.items():
        for last in (False, True) if source[0] not in ("epoch", "confidence") else (False,):
            ways = [(sign, window) for window in _WINDOWS for sign in (1, -1)]
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
    """Of the signals that `h1` measures, the best ones."""
    return ranked(runs("h1"), SOURCES, ("anomaly fraction", "anomaly fraction, paper's reading", "sparsity"))


def candidates() -> Frame:
    """The rules that `search` tried, and a signal from the other end of the network."""
    some = runs("search")
    tried = list(some.line[0]["epochs"][0]["layers"])
    return ranked(some, {name: ("fraction", name) for name in tried} | _CONFIDENCE, tried)


def alarms() -> Frame:
    """For each network, data set and seed: how many runs have a p-value below 1% after some epoch.

    Overfitting ones / healthy ones, for each of the statistics.
    """

    def cell(group: Frame, rule: str, statistic: str, last: bool) -> str:
        name = f"p {rule} {statistic}{' last' if last else ''}"
        found = [[min(signal(line, name)) < _CHANCE for line in kind.line if name in line["epochs"][0]]
                 for kind in kinds(group)]  # fmt: skip
        return " / ".join(f"{sum(each)} of {len(each)}" if each else "-" for each in found)

    columns = [(label, lambda group, way=way: cell(group, *way)) for label, way in _STATISTICS.items()]
    return table(runs("two_sample"), ("network", "data", "seed"), columns)


def two_sample_scores() -> Frame:
    """For each network and data set: how well the rules of `two_sample` follow and tell, and what else does.

    The runs of the seed on which the rule was chosen stand apart from the others. Some networks have no hidden units.
    """

    def cell(group: Frame, source: Source, last: bool) -> Score | str:
        return score(group, source, last) if all(layers_of(line, source[1]) for line in group.line) else "-"

    some = runs("two_sample")
    some["seeds"] = (some.seed == _CHOSEN_ON).map({True: f"seed {_CHOSEN_ON}", False: "others"})
    some["seeds"] = pd.Categorical(some.seeds, [f"seed {_CHOSEN_ON}", "others"], ordered=True)
    ways = {label: ((name, rule), last) for label, (rule, name, last) in _STATISTICS.items()}
    ways |= {label: (source, False) for label, source in _CONFIDENCE.items()}
    columns = [(label, lambda group, way=way: cell(group, *way)) for label, way in ways.items()]
    return table(some, ("network", "data", "seeds"), [("runs", len), *columns])
