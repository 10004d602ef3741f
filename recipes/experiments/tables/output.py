"""Stopping by the output: the runs that each rule stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import NamedTuple

import pandas as pd

from lightning_anomaly.memorization.stop_rule import GAP, LOSS_PATIENCE, WINDOW, loss_trend
from recipes.experiments.tables.curves import Line, signal
from recipes.experiments.tables.stopping import RULES as OTHERS
from recipes.experiments.tables.writer import Frame, kinds, runs

Rule = Callable[[Line], int | None]  # returns the epoch after which it stops a run, or None
# Network, data and seed of the runs by which three standard errors, and the ratio instead of log-odds, were chosen.
_CHOSEN_ON = {("lenet5", "cifar10", 3), ("simple_cnn", "fashion_mnist", 2), ("lenet5", "fashion_mnist", 0),
              ("simple_cnn", "fashion_mnist", 0)}  # fmt: skip


def first_above(values: Sequence[float], threshold: float) -> int | None:
    """Return the position of the first value above a threshold, or None."""
    return next((place for place, value in enumerate(values) if value > threshold), None)


def _rises(line: Line, name: str) -> list[float]:
    """Return a measured rise, or, for other numbers, how far the mean of three values is above its minimum so far.

    The rise of `confidence_error_ratio` is a fraction like `confidence_rise`, but ignores the standard error.
    """
    values = signal(line, name)
    if name == "confidence_rise":
        return values
    if name == "confidence_error_ratio":
        return [math.expm1(rise) for rise in _above_lowest([math.log(ratio) for ratio in values])]
    return _above_lowest(values)


def _above_lowest(values: Sequence[float]) -> list[float]:
    means = [fmean(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]
    return [0.0] * (len(values) - len(means)) + [now - min(means[: end + 1]) for end, now in enumerate(means)]


def above(threshold: float, name: str = "confidence_rise") -> Rule:
    """Make the rule that stops a run when a number has risen by more than a threshold."""
    return lambda line: first_above(_rises(line, name), threshold)


def confirmed(line: Line) -> int | None:
    """Apply the default rule: a gap, and a validation loss that does not improve."""
    rises, losses = signal(line, "confidence_rise"), signal(line, "val_loss")
    trends = (loss_trend(losses[: place + 1]) for place in range(len(losses)))
    stops = (rise > GAP and trend.stalled(LOSS_PATIENCE) for rise, trend in zip(rises, trends, strict=True))
    return next((place for place, stop in enumerate(stops) if stop), None)


def as_others(rule: str) -> Rule:
    """Make one of the rules of `stopping.RULES`; a stop at the last epoch does not count, see `Cost`."""
    return lambda line: OTHERS[rule](line).last


PATIENCE = (*(f"validation loss, patience {epochs}" for epochs in (3, 5, 10)), "validation accuracy, patience 10")
_PROPOSED = ("Label Wave, patience 5", "gradient disparity, patience 5", "rise of weight variance")
# Each rule returns the epoch at which it stops a run; that epoch's network is used.
RULES: dict[str, Rule] = {
    "rise of 5% and a validation loss that does not improve (`MemorizationEarlyStopping`)": confirmed,
    "ratio of expected errors, rise of 10%": above(0.1),
    "the same ratio without standard errors, rise of 10%": above(0.1, "confidence_error_ratio"),
    "the same, rise of 15%": above(0.15, "confidence_error_ratio"),
    "log-odds gap, rise of 0.25": above(0.25, "log_odds_gap"),
    "gap, rise of 0.025": above(0.025, "confidence_gap"),
    "area, rise of 0.03": above(0.03, "confidence_auc"),
    "area, above 0.55": lambda line: first_above(signal(line, "confidence_auc"), 0.55),
    "area, p-value below 1%": lambda line: first_above([-p for p in signal(line, "confidence_p_value")], -0.01),
    "errors made over those expected, with labels, rise of 30%": above(math.log(1.3), "log_overconfidence"),
    "loss with labels, rise of 0.03": above(0.03, "loss_auc"),
    **{rule: as_others(rule) for rule in (*PATIENCE, *_PROPOSED)},
    "none: train to the end": lambda line: None,
}


class Cost(NamedTuple):
    """The cost of a rule in a run, where it stops or else at the end; accuracies are in percentage points."""

    epoch: int  # the last trained one, from 0
    stopped: bool  # whether that is before the last one
    val_loss: float  # divided by the lowest of the run
    test_loss: float  # the same
    best: float  # test accuracy below that of the best epoch
    later: float  # test accuracy below that of the best later epoch; 0 if it is above
    kept: float  # test accuracy of a checkpoint of the best validation accuracy so far, below that of the whole run's


def cost(rule: Rule, line: Line) -> Cost:
    """Compute the cost of a rule in a run."""
    accuracy, stop = signal(line, "test_acc"), rule(line)
    end = len(accuracy) - 1 if stop is None else stop
    val, test = (losses[end] / min(losses) for losses in (signal(line, "val_loss"), signal(line, "test_loss")))
    best, later = (100 * (max(reached) - accuracy[end]) for reached in (accuracy, accuracy[end:]))
    validated = signal(line, "val_acc")
    kept, whole = (accuracy[part.index(max(part))] for part in (validated[: end + 1], validated))
    return Cost(end, end < len(accuracy) - 1, val, test, best, later, 100 * (whole - kept))


def stopped(costs: Sequence[Cost]) -> str:
    """Format the number of stopped runs."""
    return f"{sum(cost.stopped for cost in costs)} of {len(costs)}"


def summary() -> Frame:
    """For each rule: the held-out runs that it stops, and the median loss of the overfitting ones over their best."""
    some = runs("output")
    some = some[[cell not in _CHOSEN_ON for cell in zip(some.network, some.data, some.seed, strict=True)]]
    groups = [*some[~some.long].groupby("data"), *(("all images: " + data, group) for data, group in
              some[some.long].groupby("data"))]  # fmt: skip
    rows = []
    for rule, stop in RULES.items():
        rows.append([rule])
        for _, group in groups:
            bad, good = ([cost(stop, line) for line in kind.line] for kind in kinds(group))
            rows[-1] += [stopped(bad), stopped(good), f"{median(paid.val_loss for paid in bad):.2f}"]
    columns = [f"{name}: {column}" for name, _ in groups for column in ("overfitting", "healthy", "loss")]
    return pd.DataFrame(rows, columns=["rule", *columns])
