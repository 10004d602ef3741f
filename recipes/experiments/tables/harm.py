"""The cost of stopping: each run of `harm` and `output`, replayed with the rules that a user can choose."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median

import pandas as pd

from lightning_anomaly.memorization.stop_rule import GAP, LOSS_PATIENCE, loss_trend
from recipes.common.data import DATA_SETS
from recipes.experiments.spec import TRIED_ON, TUNED_ON
from recipes.experiments.tables.curves import Line, signal
from recipes.experiments.tables.output import PATIENCE, Rule, above, as_others, confirmed, cost, first_above, stopped
from recipes.experiments.tables.writer import Frame, runs


def _smoothed(line: Line) -> int | None:
    """Apply the default rule without the gap: stop when the average of the validation loss has not improved."""
    losses = signal(line, "val_loss")
    trends = (loss_trend(losses[: place + 1]) for place in range(len(losses)))
    return next((place for place, trend in enumerate(trends) if trend.waited >= LOSS_PATIENCE), None)


def _with_accuracy(line: Line) -> int | None:
    """Apply the default rule, but wait until the validation accuracy has not improved for as long, either."""
    rises, losses, accuracies = (signal(line, name) for name in ("confidence_rise", "val_loss", "val_acc"))
    for place, rise in enumerate(rises):
        waited = place - accuracies.index(max(accuracies[: place + 1]))
        if rise > GAP and loss_trend(losses[: place + 1]).stalled(LOSS_PATIENCE) and waited >= LOSS_PATIENCE:
            return place
    return None


SHOWN: dict[str, Rule] = {
    "gap and loss (the default)": confirmed,
    "validation loss, smoothed, patience 3": _smoothed,
    "gap alone": above(0.1),
    **{rule: as_others(rule) for rule in PATIENCE},
    "none: train to the end": lambda line: None,
}
_TRIED = {"gap, loss and accuracy": _with_accuracy}


def _overfits(line: Line) -> bool:
    """Whether the validation loss ends more than 10% above its minimum."""
    loss = signal(line, "val_loss")
    return loss[-1] > 1.1 * min(loss)


def of_harm(tried: bool) -> Frame:
    """Read the runs that judged the wait for the accuracy, those on photographs among them, or the others."""
    some = runs("harm")
    chosen = some[some.seed.isin(TRIED_ON) == tried]
    return pd.concat([chosen, runs("harm_photographs")], ignore_index=True) if tried else chosen


def parts() -> dict[str, Frame]:
    """Split the new runs into parts, the last of which is all runs."""
    some = of_harm(tried=False)
    small = (some.condition == "plain") & (some.data != "cifar10")
    norm = some.network.str.endswith("bn")
    return {
        "small data, BatchNorm": some[small & norm],
        "small data, no BatchNorm": some[small & ~norm],
        "CIFAR-10, overfitting": some[(some.data == "cifar10") & some.line.map(_overfits)],
        "pretrained": some[some.condition.isin(["transfer", "frozen"])],
        "all": some,
    }


_COLUMNS = ["runs", "rule", "stopped", "validation loss / best: median", "largest", "test loss / best: median",
            "below best accuracy: mean", "below: most", "accuracy to come: mean", "to come: most",
            "more than 2 points", "with a checkpoint: mean", "with a checkpoint: most",
            "with a checkpoint: more than 2 points"]  # fmt: skip


def _row(rule: Rule, some: Frame) -> list[str]:
    costs = [cost(rule, line) for line in some.line]
    _, _, val, test, best, later, kept = zip(*costs, strict=True)
    losses = [f"{median(val):.2f}", f"{max(val):.2f}", f"{median(test):.2f}"]
    points = [fmean(best), max(best), fmean(later), max(later), fmean(kept), max(kept)]
    cells = [f"{round(value, 1) + 0:.1f}" for value in points]  # never -0.0
    many = [str(sum(value > 2 for value in points)) for points in (later, kept)]
    return [stopped(costs), *losses, *cells[:4], many[0], *cells[4:], many[1]]


def _table(named: Iterable[tuple[str, Frame]]) -> Frame:
    rows = [[name, rule, *_row(stop, group)] for name, group in named for rule, stop in (SHOWN | _TRIED).items()]
    return pd.DataFrame(rows, columns=_COLUMNS)


def new_runs() -> Frame:
    """For each part of the new runs: which runs each rule stops, and at what cost."""
    return _table(parts().items())


def tried_runs() -> Frame:
    """The columns of `new_runs` for the runs that judged the wait for the accuracy, by whether they overfit."""
    some = of_harm(tried=True)
    images = some.data.isin(DATA_SETS).map({True: "from the start: ", False: "photographs: "})
    ends = some.line.map(_overfits).map({True: "overfitting", False: "healthy"})
    return _table([*some.groupby(images + ends), ("all", some)])


def recorded_runs() -> Frame:
    """The columns of `new_runs` for the runs of `output`: those that the rule was chosen on, and the others."""
    some = runs("output")
    chosen = some.seed.isin(TUNED_ON).map({True: "chosen on: ", False: "others: "})
    return _table(some.groupby(chosen + some.overfitting.map({True: "overfitting", False: "healthy"})))


def augmented() -> Frame:
    """New runs on CIFAR-10: when the gap opens by plain and by augmented training images."""
    rows = []
    for line in sorted(of_harm(tried=False).line, key=lambda line: str(line["key"])):
        if line["cell"]["data"] == "cifar10" and "confidence_rise augmented" in line["epochs"][0]:
            curves = [signal(line, name) for name in ("confidence_rise", "confidence_rise augmented")]
            opens = [first_above(curve, 0.05) for curve in curves]
            rises = [f"{100 * max(curve):.0f}%" for curve in curves]
            epochs = ["-" if epoch is None else str(epoch + 1) for epoch in opens]
            rows.append([line["key"], epochs[0], epochs[1], *rises])
    columns = ["training", "gap opens after epoch", "by augmented images", "largest rise", "by augmented images"]
    return pd.DataFrame(rows, columns=columns)
