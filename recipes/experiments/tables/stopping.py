"""Stopping rules, replayed on the curves of runs: the epoch where each stops, the network that it keeps, and the cost.

Functions on lists with one value for each epoch; positions count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

import pandas as pd

from lightning_anomaly.filters.fraction_rise import HOLD, RISE, RISE_PATIENCE, fraction_rise
from recipes.experiments.tables.curves import Line, signal
from recipes.experiments.tables.writer import Frame, kinds, runs, spread


class Stop(NamedTuple):
    """The last trained epoch, and the epoch whose network is kept."""

    last: int
    kept: int


Rule = Callable[[Line], Stop]


def by_patience(values: Sequence[float], patience: int) -> Stop:
    """Stop after `patience` epochs without a new minimum, and keep the minimum, as EarlyStopping does."""
    best = 0
    for position, value in enumerate(values):
        if value < values[best]:
            best = position
        if position - best >= patience:
            return Stop(position, best)
    return Stop(len(values) - 1, best)


def by_rise(values: Sequence[float], threshold: float = RISE, patience: int = RISE_PATIENCE) -> Stop:
    """Stop as `AnomalyEarlyStopping` does on the values of a fraction; keep the network before the rise."""
    lasted = 0
    for position in range(len(values)):
        lasted = lasted + 1 if fraction_rise(values[: position + 1]) > threshold else 0
        if lasted and lasted + HOLD - 1 >= patience:
            return Stop(position, max(0, position - lasted - HOLD + 1))
    return Stop(len(values) - 1, len(values) - 1)


def _relative(values: Sequence[float]) -> list[float]:
    return [value / values[0] for value in values]


def _accuracy(line: Line) -> list[float]:
    return [-value for value in signal(line, "val_acc")]


# Patience 5 for rules that were proposed with a patience. The first "changed" compares with the untrained network.
RULES: dict[str, Rule] = {
    "anomaly filters (default)": lambda line: by_rise(signal(line, "fraction")),
    "anomaly filters (paper's reading)": lambda line: by_rise(signal(line, "fraction", "val_paper")),
    "validation loss, patience 3": lambda line: by_patience(signal(line, "val_loss"), 3),
    "validation loss, patience 5": lambda line: by_patience(signal(line, "val_loss"), 5),
    "validation loss, patience 10": lambda line: by_patience(signal(line, "val_loss"), 10),
    "validation accuracy, patience 10": lambda line: by_patience(_accuracy(line), 10),
    "validation accuracy, best of all epochs": lambda line: by_patience(_accuracy(line), len(line["epochs"])),
    "Label Wave, patience 5": lambda line: by_patience(signal(line, "changed"), 5),
    "gradient disparity, patience 5": lambda line: by_patience(signal(line, "disparity"), 5),
    "rise of sparsity": lambda line: by_rise(signal(line, "sparsity")),
    "rise of weight variance": lambda line: by_rise(_relative(signal(line, "weight_variance"))),
    "none: train to the end": lambda line: Stop(len(line["epochs"]) - 1, len(line["epochs"]) - 1),
}


def replay(line: Line, rule: Rule) -> dict[str, float]:
    """Compute trained `epochs`, lost test `accuracy` (percentage points) and `loss` (nats), and if it `stopped`."""
    stop = rule(line)
    accuracy, loss = signal(line, "test_acc"), signal(line, "test_loss")
    return {
        "epochs": stop.last + 1.0,
        "accuracy": 100 * (max(accuracy) - accuracy[stop.kept]),
        "loss": loss[stop.kept] - min(loss),
        "stopped": float(stop.last < len(accuracy) - 1),
    }


def by_network() -> Frame:
    """For each network and rule: lost accuracy and loss, trained epochs, and the number of stopped runs."""
    some, rows = runs("h1"), []
    for network, group in some[~some.long].groupby("network"):
        for name, rule in RULES.items():
            bad, good = (pd.DataFrame([replay(line, rule) for line in kind.line]) for kind in kinds(group))
            stopped = [f"{costs.stopped.sum():.0f} of {len(costs)}" for costs in (bad, good)]
            lost = [spread(bad.accuracy, 1), spread(bad.loss), f"{mean(bad.epochs):.0f}"]
            rows.append((network, name, *lost, stopped[0], spread(good.accuracy, 1), stopped[1]))
    header = ["network", "rule", "overfitting: accuracy lost (points)", "loss above the best (nats)", "epochs",
              "stopped", "healthy: accuracy lost", "stopped"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)
