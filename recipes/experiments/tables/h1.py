"""H1: tables of the runs whose every epoch was analyzed, of the signals, and of the frozen networks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, linear_regression, mean, median
from typing import Any

import pandas as pd

from lightning_anomaly.callbacks._history import rise
from recipes.experiments.tables.curves import (
    after_best,
    auroc,
    best_epoch,
    correlation,
    late_change,
    layers_of,
    partial_correlation,
    signal,
)
from recipes.experiments.tables.writer import Frame, arrow, kinds, number, runs, spread, table

__all__ = ["LONG_SOURCES", "SOURCES", "frozen", "layers", "long_runs", "long_signals", "short_runs", "signals"]

Line = dict[str, Any]
Source = tuple[str, str]  # a signal and the reading that it is taken from
SOURCES: dict[str, Source] = {
    "anomaly fraction": ("fraction", "val"),
    "anomaly fraction, maps not rectified": ("fraction", "val_unrectified"),
    "anomaly fraction, paper's reading": ("fraction", "val_paper"),
    "anomaly fraction, training probe": ("fraction", "train"),
    "anomaly filters with a gap": ("isolated", "val"),
    "isolated filters": ("set_apart", "val"),
    "anomaly filters silent but for a few samples": ("silent", "val"),
    "sparsity": ("sparsity", "val"),
    "kurtosis": ("kurtosis", "val"),
    "class separation, training less validation": ("separation", "val"),
    "variance outside two components": ("outside", "val"),
    "variance of the second component": ("second", "val"),
    "weight variance": ("weight_variance", "val"),
    "weight norm": ("weight_norm", "val"),
    "epoch number": ("epoch", "val"),
}
LONG_SOURCES: dict[str, Source] = {
    "anomaly fraction": ("fraction", "val"),
    "paper's reading": ("fraction", "val_paper"),
    "isolated filters": ("set_apart", "val"),
    "sparsity": ("sparsity", "val"),
}


def _follows(line: Line, source: Source, layer: str | None = None) -> float | None:
    """Rank correlation with the validation loss from the best epoch on."""
    return correlation(after_best(line, signal(line, *source, layer)), after_best(line, signal(line, "val_loss")))


def _follows_given_sparsity(line: Line, source: Source, layer: str | None = None) -> float | None:
    curves = (signal(line, *source, layer), signal(line, "val_loss"), signal(line, "sparsity", layer=layer))
    return partial_correlation(*(after_best(line, each) for each in curves))


def _median(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    return number(median(found) if found else None)


def _tells(some: Frame, source: Source, layer: str | None = None) -> str:
    """AUROC of late changes, overfitting runs against healthy ones."""
    return number(auroc([late_change(signal(line, *source, layer)) for line in some.line], some.overfitting), ".2f")


def _signal(some: Frame, source: Source, layer: str | None = None) -> tuple[str, str, str]:
    lines = some[some.overfitting].line
    follows = [_median([how(line, source, layer) for line in lines]) for how in (_follows, _follows_given_sparsity)]
    return follows[0], follows[1], _tells(some, source, layer)


def short_runs() -> Frame:
    """For each network, data set and condition: the loss, the anomaly fraction, and whether one follows the other."""
    some = runs("h1")
    some = some[~some.long]
    some = some.assign(
        loss=[signal(line, "val_loss") for line in some.line],
        fraction=[signal(line, "fraction") for line in some.line],
        best=[best_epoch(line) for line in some.line],
    )

    def largest_rise(values: Sequence[float]) -> float:
        return max(rise(values[:end]) for end in range(1, len(values) + 1))

    return table(
        some,
        ("network", "data", "condition"),
        [
            ("seeds", len),
            ("validation loss, best → end", lambda own: arrow((min(loss), loss[-1]) for loss in own.loss)),
            ("best epoch", lambda own: f"{mean(int(best) + 1 for best in own.best):.0f} of {len(own.loss.iloc[0])}"),
            (
                "anomaly fraction, best → end",
                lambda own: arrow(((f[best], f[-1]) for f, best in zip(own.fraction, own.best, strict=True)), 3),
            ),
            ("Spearman, whole run", lambda own: spread(map(correlation, own.fraction, own.loss))),
            ("Spearman after best", lambda own: spread(_follows(line, ("fraction", "val")) for line in own.line)),
            (
                "the same, paper's reading",
                lambda own: spread(_follows(line, ("fraction", "val_paper")) for line in own.line),
            ),
            ("largest rise", lambda own: spread(map(largest_rise, own.fraction), 3)),
        ],
    )


def signals() -> Frame:
    """For each network and signal, over all its layers: does it follow the loss, does it tell the runs apart?"""
    some = runs("h1")
    rows = [
        (network, label, len(own), *_signal(own, source))
        for network, own in some[~some.long].groupby("network")
        for label, source in SOURCES.items()
    ]
    header = ["network", "signal", "runs", "Spearman after best", "the same given sparsity", "AUROC"]
    return pd.DataFrame(rows, columns=header)


def layers() -> Frame:
    """For each layer: what `signals` says of the anomaly fraction, in both readings, and of sparsity."""
    some, rows = runs("h1"), []
    for network, own in some[~some.long].groupby("network"):
        for layer in layers_of(own.line.iloc[0]):
            sources = (("fraction", "val"), ("fraction", "val_paper"), ("sparsity", "val"))
            cells = [_signal(own, source, layer) for source in sources]
            rows.append((network, layer, *(f"{follows} / {tells}" for follows, _, tells in cells)))
    return pd.DataFrame(rows, columns=["network", "layer", "anomaly fraction", "paper's reading", "sparsity"])


def long_runs() -> Frame:
    """Runs on all images: what is counted at the best epoch and at the end, and how sparsity and the epoch follow."""
    some = runs("h1")

    def cell(line: Line, source: Source) -> str:
        values = signal(line, *source)
        follows = (number(how(line, source)) for how in (_follows, _follows_given_sparsity))
        return f"{values[best_epoch(line)]:.3f} → {values[-1]:.3f}, {late_change(values):+.3f}, " + " / ".join(follows)

    columns = [(label, lambda own, source=source: cell(own.line.iloc[0], source)) for label, source in
               LONG_SOURCES.items()]  # fmt: skip
    return table(
        some[some.long],
        ("network", "data", "condition", "seed"),
        [
            (
                "validation loss, best → end",
                lambda own: arrow([(min(loss := signal(own.line.iloc[0], "val_loss")), loss[-1])]),
            ),
            ("best epoch", lambda own: f"{best_epoch(own.line.iloc[0]) + 1} of {own.epochs.iloc[0]}"),
            *columns,
        ],
    )


def long_signals() -> Frame:
    """What `signals` says, of the runs on all images, by network and of all of them together.

    And in how many pairs of an overfitting and a healthy run, of the same images and seed, the former changes more.
    """
    some = runs("h1")
    some, rows = some[some.long], []
    for network, own in [*some.groupby("network"), ("all", some)]:
        for label, source in {**LONG_SOURCES, "epoch number": ("epoch", "val")}.items():
            own = own.assign(change=[late_change(signal(line, *source)) for line in own.line])
            changes = [f"{fmean(kind.change):+.3f}" if len(kind) else "-" for kind in kinds(own)]
            follows, given, tells = _signal(own, source)
            pairs = own.pivot_table("change", ["network", "data", "seed"], "overfitting").dropna()
            larger = f"{(pairs[True] > pairs[False]).sum()} of {len(pairs)} pairs"
            rows.append((network, label, follows, given, *changes, tells, _tells_given_sparsity(own, source), larger))
    header = ["network", "signal", "Spearman after best", "the same given sparsity", "change: overfitting", "healthy",
              "AUROC", "the same given sparsity", "larger when overfitting"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)


def _tells_given_sparsity(some: Frame, source: Source) -> str:
    """AUROC of late changes less what those of sparsity explain of them, by a line through all runs."""
    sparsity = [late_change(signal(line, "sparsity")) for line in some.line]
    if source[0] in ("sparsity", "epoch") or len(some) < 6 or min(sparsity) == max(sparsity):
        return "-"  # of fewer runs a line explains too much
    slope, level = linear_regression(sparsity, list(some.change))
    rest = [change - slope * own - level for change, own in zip(some.change, sparsity, strict=True)]
    return number(auroc(rest, some.overfitting), ".2f")


def frozen() -> Frame:
    """For each network and data set: the loss and the accuracies at the best epoch, and after it with parts frozen."""
    some, rows = runs("frozen"), []
    for (network, data), own in some.groupby(["network", "data"]):
        stages = {"best epoch": [line["start"] for line in own.line]}
        stages |= {f"then {arm}": [line["arms"][arm] for line in own.line] for arm in own.line.iloc[0]["arms"]}
        for stage, found in stages.items():
            accuracies = [f"{100 * mean(each[part] for each in found):.1f}%" for part in ("train_acc", "test_acc")]
            loss = spread(each["val_loss"] for each in found)
            rows.append((network, data, stage, len(own), loss, *accuracies))
    header = ["network", "data", "trained", "seeds", "validation loss", "training accuracy", "test accuracy"]
    return pd.DataFrame(rows, columns=header)
