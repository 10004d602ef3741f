"""Curves of one training, read from its line, and what they say about overfitting: functions on lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from lightning_anomaly.callbacks._history import rise
from recipes.experiments.common import ranks

__all__ = [
    "after_best",
    "auroc",
    "best_epoch",
    "correlation",
    "joined",
    "late_change",
    "layers_of",
    "partial_correlation",
    "signal",
    "smoothed",
    "sustained_rise",
]

_OF_LIVE = {"fraction": "count", "isolated": "isolated", "silent": "silent", "set_apart": "set_apart"}


def layers_of(line: dict[str, Any], reading: str | None = None) -> list[str]:
    """The layers of a training, in the network's order: of one reading, or of the first."""
    readings = line["epochs"][0]["layers"]
    return list(readings[reading] if reading in readings else next(iter(readings.values())))


def signal(line: dict[str, Any], name: str, reading: str = "val", layer: str | None = None) -> list[float]:
    """A signal after each epoch.

    Args:
        line: A training.
        name: "fraction", "isolated", "silent" or "set_apart" for anomaly filters, isolated or silent ones, or filters
            that set samples apart, as a fraction of the live filters; or a layer's statistic, see `layer_statistics`,
            where "separation" is that of the training probe minus that of the validation probe; or an entry of the
            epochs, such as "val_loss"; or "epoch".
        reading: A key of `READINGS`.
        layer: One layer; None takes all: fractions of all live filters, means of other statistics over the layers.
    """
    if name == "epoch":
        return [float(index) for index in range(len(line["epochs"]))]
    if name in line["epochs"][0]:
        return [float(epoch[name]) for epoch in line["epochs"]]
    chosen = layers_of(line, reading) if layer is None else [layer]

    def at(epoch: dict[str, Any]) -> float:
        found = [epoch["layers"][reading][each] for each in chosen]
        if name in _OF_LIVE:
            live = sum(each["live"] for each in found)
            return sum(each[_OF_LIVE[name]] for each in found) / live if live else 0.0
        if name == "separation":
            both = (epoch["layers"]["train"][each]["separation"] - epoch["layers"]["val"][each]["separation"]
                    for each in chosen)  # fmt: skip
            return fmean(both)
        if name.startswith("weight"):
            found = [epoch["layers"]["val"][each] for each in chosen]
        return fmean(each[name] for each in found)

    return [at(epoch) for epoch in line["epochs"]]


def joined(lines: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainings of `h1` that `two_sample` followed too, with its p-values in their epochs.

    On another kind of processor the same training takes another course: one whose validation losses differ is left out.
    """
    by_key = {line["key"]: line for line in compared}
    return [
        {
            **line,
            "epochs": [
                {**epoch, **{name: value for name, value in other.items() if name.startswith("p ")}}
                for epoch, other in zip(line["epochs"], by_key[line["key"]]["epochs"], strict=True)
            ],
        }
        for line in lines
        if line["key"] in by_key and signal(line, "val_loss") == signal(by_key[line["key"]], "val_loss")
    ]


def best_epoch(line: dict[str, Any]) -> int:
    """Position of the smallest validation loss."""
    return int(np.argmin(signal(line, "val_loss")))


def after_best(line: dict[str, Any], values: Sequence[float]) -> list[float]:
    """What a curve does from the best epoch on."""
    return list(values[best_epoch(line) :])


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; 0 if one of them is constant, None for fewer than five values."""
    if len(a) < 5:
        return None
    value = ranks.rank_correlation(*(torch.tensor(values, dtype=torch.float64) for values in (a, b)))
    return 0.0 if value is None else value


def partial_correlation(a: Sequence[float], b: Sequence[float], given: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two curves once a third is given; None for fewer than five values.

    The correlation of what a linear fit on the ranks of `given` leaves of the ranks of `a` and `b`.
    """
    if len(a) < 5:
        return None
    ranked = [rankdata(values) for values in (a, b, given)]
    control = ranked[2] - ranked[2].mean()
    rest = []
    for values in ranked[:2]:
        centred = values - values.mean()
        norm = control @ control
        rest.append(centred - (centred @ control / norm * control if norm else 0.0))
    scale = float(np.sqrt((rest[0] @ rest[0]) * (rest[1] @ rest[1])))
    return float(rest[0] @ rest[1]) / scale if scale > 1e-9 else 0.0


def sustained_rise(values: Sequence[float]) -> float:
    """The largest that `anomaly_filters/rise` would have been, see `lightning_anomaly.callbacks._history`."""
    return max(rise(values[:end]) for end in range(1, len(values) + 1))


def late_change(values: Sequence[float]) -> float:
    """Mean of the last quarter of a curve minus that of its second quarter; looks at no loss."""
    quarter = max(1, len(values) // 4)
    return fmean(values[-quarter:]) - fmean(values[quarter : 2 * quarter])


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` in all; fewer at the beginning."""
    return [fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Probability that a positive run scores above another one, ties counted half; None without both kinds."""
    if len(set(positive)) < 2:
        return None
    return ranks.auroc(torch.tensor(positive), torch.tensor(scores, dtype=torch.float64))
