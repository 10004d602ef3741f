"""Rules that stop a training, replayed on its curves: where each stops and which epoch's network it keeps.

Functions on lists with one value for each epoch; positions count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_anomaly.callbacks._history import HOLD, PATIENCE, THRESHOLD, rise
from recipes.experiments.common.curves import layers_of, signal

__all__ = ["RULES", "TWO_SAMPLE", "Stop", "by_patience", "by_rise", "by_threshold", "replay"]


@dataclass(frozen=True)
class Stop:
    """What a rule does: the last epoch trained, and the epoch whose network is kept."""

    last: int
    kept: int


def by_patience(values: Sequence[float], patience: int) -> Stop:
    """Stops when `patience` epochs in a row bring no new minimum, and keeps the minimum, as EarlyStopping does."""
    best = 0
    for position, value in enumerate(values):
        if value < values[best]:
            best = position
        if position - best >= patience:
            return Stop(position, best)
    return Stop(len(values) - 1, best)


def by_rise(values: Sequence[float], threshold: float = THRESHOLD, patience: int = PATIENCE) -> Stop:
    """What `AnomalyEarlyStopping` does on the values of a fraction; keeps the network before the rise that it found."""
    lasted = 0
    for position in range(len(values)):
        lasted = lasted + 1 if rise(values[: position + 1]) > threshold else 0
        if lasted and lasted + HOLD - 1 >= patience:
            return Stop(position, max(0, position - lasted - HOLD + 1))
    return Stop(len(values) - 1, len(values) - 1)


def by_threshold(values: Sequence[float], threshold: float) -> Stop:
    """Stops at the first value above a threshold, as EarlyStopping with a `divergence_threshold`, and keeps it."""
    position = next((place for place, value in enumerate(values) if value > threshold), len(values) - 1)
    return Stop(position, position)


def _relative(values: Sequence[float]) -> list[float]:
    return [value / values[0] for value in values] if values[0] else list(values)


def _falling(values: Sequence[float]) -> list[float]:
    return [-value for value in values]


TWO_SAMPLE = "filters that tell training images, p below 1%"  # for lines that were `joined`
# Patience 5 for those that were proposed with one; the first epoch of "changed" compares with the untrained network.
RULES: dict[str, Callable[[dict[str, Any]], Stop]] = {
    "anomaly filters (default)": lambda line: by_rise(signal(line, "fraction")),
    "anomaly filters (paper's reading)": lambda line: by_rise(signal(line, "fraction", "val_paper")),
    "validation loss, patience 3": lambda line: by_patience(signal(line, "val_loss"), 3),
    "validation loss, patience 5": lambda line: by_patience(signal(line, "val_loss"), 5),
    "validation loss, patience 10": lambda line: by_patience(signal(line, "val_loss"), 10),
    "validation accuracy, patience 10": lambda line: by_patience(_falling(signal(line, "val_acc")), 10),
    "validation accuracy, best of all epochs": lambda line: by_patience(
        _falling(signal(line, "val_acc")), len(line["epochs"])
    ),
    "Label Wave, patience 5": lambda line: by_patience(signal(line, "changed"), 5),
    "gradient disparity, patience 5": lambda line: by_patience(signal(line, "disparity"), 5),
    "rise of sparsity": lambda line: by_rise(signal(line, "sparsity")),
    "rise of weight variance": lambda line: by_rise(_relative(signal(line, "weight_variance"))),
    "rise of variance outside, last layer": lambda line: by_rise(signal(line, "outside", layer=layers_of(line)[-1])),
    TWO_SAMPLE: lambda line: by_threshold(_falling(signal(line, "p max fraction")), -0.01),
    "none: train to the end": lambda line: Stop(len(line["epochs"]) - 1, len(line["epochs"]) - 1),
}


def replay(line: dict[str, Any], rule: str) -> dict[str, float]:
    """What a rule costs in one training.

    Returns:
        `epochs` trained; `accuracy`, the test accuracy lost against the epoch with the highest (percentage points);
        `loss`, the test loss above that of the epoch with the lowest (nats); `stopped`, 1 if it ended the training.
    """
    stop = RULES[rule](line)
    accuracy, loss = signal(line, "test_acc"), signal(line, "test_loss")
    return {
        "epochs": stop.last + 1.0,
        "accuracy": 100 * float(np.max(accuracy) - accuracy[stop.kept]),
        "loss": float(loss[stop.kept] - np.min(loss)),
        "stopped": float(stop.last < len(accuracy) - 1),
    }
