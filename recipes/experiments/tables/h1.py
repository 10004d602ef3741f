"""H1: tables of the signals."""

from __future__ import annotations

from statistics import fmean, linear_regression, median

import pandas as pd
from sklearn.metrics import roc_auc_score

from recipes.experiments.tables.curves import follows, late_change, signal
from recipes.experiments.tables.writer import Frame, kinds, runs

Source = tuple[str, str]  # a signal and the reading that it is taken from
_SOURCES: dict[str, Source] = {
    "anomaly fraction": ("fraction", "val"),
    "anomaly fraction, paper's reading": ("fraction", "val_paper"),
    "isolated filters": ("set_apart", "val"),
    "sparsity": ("sparsity", "val"),
    "epoch number": ("epoch", "val"),
}


def _signal(some: Frame, source: Source) -> tuple[str, str]:
    """Compute how a signal follows the loss, and the AUROC of its late changes."""
    followed = [follows(line, signal(line, *source)) for line in some[some.overfitting].line]
    changes = [late_change(signal(line, *source)) for line in some.line]
    plain = median(value for value in followed if value is not None)
    return f"{plain:+.2f}", f"{roc_auc_score(some.overfitting, changes):.2f}"


def signals() -> Frame:
    """For each network and signal, over all layers: does it follow the loss, does it tell the runs apart?"""
    some = runs("h1")
    rows = [
        (network, label, len(group), *_signal(group, source))
        for network, group in some[~some.long].groupby("network")
        for label, source in _SOURCES.items()
    ]
    return pd.DataFrame(rows, columns=["network", "signal", "runs", "Spearman after best", "AUROC"])


def long_signals() -> Frame:
    """The columns of `signals` for the runs on all images, by network and of all networks.

    And the number of pairs of an overfitting and a healthy run, with the same images and seed, in which the former
    changes more.
    """
    some = runs("h1")
    some, rows = some[some.long], []
    for network, group in [*some.groupby("network"), ("all", some)]:
        for label, source in _SOURCES.items():
            group = group.assign(change=[late_change(signal(line, *source)) for line in group.line])
            changes = [f"{fmean(kind.change):+.3f}" for kind in kinds(group)]
            plain, tells = _signal(group, source)
            pairs = group.pivot_table("change", ["network", "data", "seed"], "overfitting").dropna()
            larger = f"{(pairs[True] > pairs[False]).sum()} of {len(pairs)} pairs"
            rows.append((network, label, plain, *changes, tells, _tells_given_sparsity(group, source), larger))
    header = ["network", "signal", "Spearman after best", "change: overfitting", "healthy",
              "AUROC", "the same given sparsity", "larger when overfitting"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)


def _tells_given_sparsity(some: Frame, source: Source) -> str:
    """Compute the AUROC of the residuals of late changes after a linear regression on those of sparsity."""
    sparsity = [late_change(signal(line, "sparsity")) for line in some.line]
    if source[0] in ("sparsity", "epoch"):
        return "-"
    slope, level = linear_regression(sparsity, list(some.change))
    rest = [change - slope * sparse - level for change, sparse in zip(some.change, sparsity, strict=True)]
    return f"{roc_auc_score(some.overfitting, rest):.2f}"
