"""What stopping costs: each run of `harm` and `output` replayed by the rules that a user can choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

import pandas as pd

from lightning_anomaly.two_sample.stopping import CONFIRMED_PATIENCE, since_best
from recipes.experiments.spec import OVERFITTING, TUNED_ON
from recipes.experiments.tables.curves import signal
from recipes.experiments.tables.output import RULES, Rule, first_above
from recipes.experiments.tables.writer import Frame, runs

Line = dict[str, Any]
_NAMES = {"rise of 5%": "gap and loss (the default)", "ratio of": "gap alone (`confirm=None`)", "validation loss": "",
          "validation accuracy": "",
          "none": "none: train to the end"}  # fmt: skip


def _smoothed(line: Line) -> int | None:
    """The default rule without the gap: when the average of the validation loss has not improved."""
    losses = signal(line, "val_loss")
    return next((place for place in range(len(losses)) if since_best(losses[: place + 1]) >= CONFIRMED_PATIENCE), None)


_CHOSEN = {label or rule: RULES[rule] for rule in RULES for start, label in _NAMES.items() if rule.startswith(start)}
_DEFAULT = next(iter(_CHOSEN))
SHOWN = {_DEFAULT: _CHOSEN.pop(_DEFAULT), "validation loss, smoothed, patience 3": _smoothed, **_CHOSEN}


class Cost(NamedTuple):
    """What a rule costs in one run, where it stops it or else at its end.

    Attributes:
        epoch: The last epoch trained, from 0.
        stopped: Whether that is before the last one.
        val_loss: Validation loss there, over the lowest of the run.
        test_loss: Test loss likewise.
        best: Test accuracy below that of the best epoch (percentage points).
        later: Test accuracy below that of the best of the epochs that were not trained; 0 if it is above.
    """

    epoch: int
    stopped: bool
    val_loss: float
    test_loss: float
    best: float
    later: float


def cost(rule: Rule, line: Line) -> Cost:
    """What a rule costs in a run."""
    accuracy, stop = signal(line, "test_acc"), rule(line)
    end = len(accuracy) - 1 if stop is None else stop
    val, test = (own[end] / min(own) for own in (signal(line, "val_loss"), signal(line, "test_loss")))
    best, later = (100 * (max(own) - accuracy[end]) for own in (accuracy, accuracy[end:]))
    return Cost(end, end < len(accuracy) - 1, val, test, best, later)


def _small(line: Line) -> bool:
    return bool(line["cell"]["condition"] == "plain" and line["cell"]["data"] != "cifar10")


def _overfits(line: Line) -> bool:
    """Whether the validation loss ends a tenth above its lowest value."""
    loss = signal(line, "val_loss")
    return loss[-1] > 1.1 * min(loss)


def parts(some: Frame) -> dict[str, list[Line]]:
    """The new runs in parts, and all of them."""
    lines = list(some.line)
    named: Mapping[str, Callable[[Line], bool]] = {
        "small data, BatchNorm": lambda line: _small(line) and line["cell"]["network"].endswith("bn"),
        "small data, no BatchNorm": lambda line: _small(line) and not line["cell"]["network"].endswith("bn"),
        "CIFAR-10, overfitting": lambda line: line["cell"]["data"] == "cifar10" and _overfits(line),
        "pretrained": lambda line: line["cell"]["condition"] in ("transfer", "frozen"),
        "all": lambda line: True,
    }
    return {name: [line for line in lines if chosen(line)] for name, chosen in named.items()}


_COLUMNS = ["runs", "rule", "stopped", "validation loss / best: median", "largest", "test loss / best: median",
            "below best accuracy: mean", "below: most", "accuracy to come: mean", "to come: most",
            "more than 2 points"]  # fmt: skip


def _row(rule: Rule, lines: list[Line]) -> list[str]:
    costs = [cost(rule, line) for line in lines]
    val, test, best, later = ([own[place] for own in costs] for place in range(2, 6))
    stopped = f"{sum(own.stopped for own in costs)} of {len(costs)}"
    losses = [f"{median(val):.2f}", f"{max(val):.2f}", f"{median(test):.2f}"]
    points = [f"{value:.1f}" for value in (fmean(best), max(best), fmean(later), max(later))]
    return [stopped, *losses, *points, str(sum(value > 2 for value in later))]


def _table(by_name: Mapping[str, list[Line]]) -> Frame:
    rows = [[name, rule, *_row(stop, own)] for name, own in by_name.items() if own for rule, stop in SHOWN.items()]
    return pd.DataFrame(rows, columns=_COLUMNS)


def new_runs() -> Frame:
    """For the new runs in parts: what each rule stops, and what that costs."""
    return _table(parts(runs("harm")))


def recorded_runs() -> Frame:
    """The same for the runs of `output` that the rule was chosen on, and for the others."""
    named: dict[str, list[Line]] = {}
    for line in runs("output").line:
        chosen = "chosen on" if line["cell"]["seed"] in TUNED_ON else "others"
        kind = "overfitting" if line["cell"]["condition"] in OVERFITTING else "healthy"
        named.setdefault(f"{chosen}: {kind}", []).append(line)
    return _table(dict(sorted(named.items())))


def each_new_run() -> Frame:
    """Each new run: losses, and what the default rule costs."""
    default = next(iter(SHOWN.values()))
    rows = []
    for line in sorted(runs("harm").line, key=lambda line: str(line["key"])):
        loss, own = signal(line, "val_loss"), cost(default, line)
        stop = str(own.epoch + 1) if own.stopped else "-"
        rows.append([line["key"], f"{min(loss):.2f} → {loss[-1]:.2f}", f"{loss.index(min(loss)) + 1}", stop,
                     f"{own.val_loss:.2f}", f"{own.best:.1f}", f"{own.later:.1f}"])  # fmt: skip
    columns = ["training", "validation loss, best → end", "best epoch", "stopped after epoch", "loss over the best",
               "accuracy below the best (points)", "accuracy still to come"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def augmented() -> Frame:
    """New runs on CIFAR-10: when the gap opens by plain training images, and by shifted and mirrored ones."""
    rows = []
    for line in sorted(runs("harm").line, key=lambda line: str(line["key"])):
        if line["cell"]["data"] == "cifar10" and "confidence_rise augmented" in line["epochs"][0]:
            curves = [signal(line, name) for name in ("confidence_rise", "confidence_rise augmented")]
            opens = [first_above(curve, 0.05) for curve in curves]
            rises = [f"{100 * max(curve):.0f}%" for curve in curves]
            epochs = ["-" if epoch is None else str(epoch + 1) for epoch in opens]
            rows.append([line["key"], epochs[0], epochs[1], *rises])
    columns = ["training", "gap opens after epoch", "by augmented images", "largest rise", "by augmented images"]
    return pd.DataFrame(rows, columns=columns)
