"""Curves of one run, read from its line, and what they say about overfitting: functions on lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

_OF_LIVE = {"fraction": "count", "isolated": "isolated", "silent": "silent", "set_apart": "set_apart"}
Line = dict[str, Any]


def layers_of(line: Line, reading: str | None = None) -> list[str]:
    """The layers of a run, in the network's order: of one reading, or of the first."""
    readings = line["epochs"][0]["layers"]
    return list(readings[reading] if reading in readings else next(iter(readings.values())))


def signal(line: Line, name: str, reading: str = "val", layer: str | None = None) -> list[float]:
    """Read a signal after each epoch.

    Args:
        line: A run.
        name: "fraction", "isolated", "silent" or "set_apart" for anomaly filters, isolated or silent ones, or filters
            that set samples apart, as a fraction of the live filters; or a layer's statistic, where "separation" is
            that of the training probe minus that of the validation probe; or an entry of the epochs, such as
            "val_loss"; or "epoch".
        reading: A key of the line's layers.
        layer: One layer; None takes all: fractions of all live filters, means of other statistics over the layers.
    """
    if name == "epoch":
        return [float(index) for index in range(len(line["epochs"]))]
    if name in line["epochs"][0]:
        return [float(epoch[name]) for epoch in line["epochs"]]
    chosen = layers_of(line, reading) if layer is None else [layer]

    def at(epoch: Line) -> float:
        found = [epoch["layers"]["val" if name.startswith("weight") else reading][each] for each in chosen]
        if name in _OF_LIVE:
            live = sum(each["live"] for each in found)
            return sum(each[_OF_LIVE[name]] for each in found) / live if live else 0.0
        if name == "separation":
            train = [epoch["layers"]["train"][each]["separation"] for each in chosen]
            return fmean(a - b["separation"] for a, b in zip(train, found, strict=True))
        return fmean(each[name] for each in found)

    return [at(epoch) for epoch in line["epochs"]]


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; 0 if one of them is constant, None for fewer than five values."""
    if len(a) < 5:
        return None
    return float(spearmanr(a, b).statistic) if min(a) < max(a) and min(b) < max(b) else 0.0


def partial_correlation(a: Sequence[float], b: Sequence[float], given: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two curves given a third; None for fewer than five values."""
    both, with_a, with_b = correlation(a, b), correlation(a, given), correlation(b, given)
    if both is None or with_a is None or with_b is None:
        return None
    scale = math.sqrt(max(0.0, (1 - with_a**2) * (1 - with_b**2)))
    return (both - with_a * with_b) / scale if scale > 1e-9 else 0.0


def follows(line: Line, values: Sequence[float], given: Sequence[float] | None = None) -> float | None:
    """Rank correlation of a curve with the validation loss from the best epoch on, also given a third curve."""
    loss = signal(line, "val_loss")
    best = loss.index(min(loss))
    curves = values[best:], loss[best:]
    return correlation(*curves) if given is None else partial_correlation(*curves, given[best:])


def late_change(values: Sequence[float]) -> float:
    """Mean of the last quarter of a curve minus that of its second quarter; looks at no loss."""
    quarter = max(1, len(values) // 4)
    return fmean(values[-quarter:]) - fmean(values[quarter : 2 * quarter])


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Probability that a positive run scores above another one, ties counted half."""
    return float(roc_auc_score(positive, scores))
