"""Curves of one run, read from its line, and their relation to overfitting: functions on lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

_OF_LIVE = {"fraction": "count", "set_apart": "set_apart"}
Line = dict[str, Any]


def layers_of(line: Line, reading: str | None = None) -> list[str]:
    """Return the layers of a run in the network's order, of a reading or else of the first."""
    readings = line["epochs"][0]["layers"]
    return list(readings[reading] if reading in readings else next(iter(readings.values())))


def signal(line: Line, name: str, reading: str = "val", layer: str | None = None) -> list[float]:
    """Read a signal after each epoch.

    Args:
        line: A run.
        name: "fraction" or "set_apart" for the share of the live filters that are anomaly filters, or have isolated
            samples; or a layer's statistic; or an entry of the epochs, such as "val_loss"; or "epoch".
        reading: A key of the line's layers.
        layer: One layer; None takes all: shares of all live filters, means of other statistics over the layers.
    """
    if name == "epoch":
        return [float(index) for index in range(len(line["epochs"]))]
    if name in line["epochs"][0]:
        return [float(epoch[name]) for epoch in line["epochs"]]
    chosen = layers_of(line, reading) if layer is None else [layer]

    def at(epoch: Line) -> float:
        layers = epoch["layers"][reading]
        if name in _OF_LIVE:
            live = sum(layers[key]["live"] for key in chosen)
            return sum(layers[key][_OF_LIVE[name]] for key in chosen) / live if live else 0.0
        return fmean(layers[key][name] for key in chosen)

    return [at(epoch) for epoch in line["epochs"]]


def follows(line: Line, values: Sequence[float]) -> float | None:
    """Compute Spearman's correlation of a curve with the validation loss from the best epoch on.

    It is 0 if one of them is constant, None for fewer than five epochs.
    """
    loss = signal(line, "val_loss")
    a, b = (curve[loss.index(min(loss)) :] for curve in (values, loss))
    if len(a) < 5:
        return None
    return float(spearmanr(a, b).statistic) if min(a) < max(a) and min(b) < max(b) else 0.0


def late_change(values: Sequence[float]) -> float:
    """Return the mean of the last quarter of a curve minus that of its second quarter."""
    quarter = max(1, len(values) // 4)
    return fmean(values[-quarter:]) - fmean(values[quarter : 2 * quarter])
