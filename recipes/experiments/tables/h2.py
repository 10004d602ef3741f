"""H2: gradients of outlier samples, detection of mislabelled images, and training without outlier samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import mean, variance
from typing import Any

import pandas as pd

from recipes.experiments.tables.writer import Frame, runs, spread

READINGS = ("ours", "paper")
PROBES = {"train": "training", "val": "validation"}
_EARLY = 2  # the first epochs
Found = dict[str, Any]


def measured() -> Frame:
    """Read the runs with measured gradients, their last measured epoch and the one nearest to the lowest loss."""
    some = runs("h2").query("kind == 'measure'")

    def near_best(line: Found) -> Found:
        best = line["val_losses"].index(min(line["val_losses"])) + 1
        nearest: Found = min(line["epochs"], key=lambda epoch: abs(epoch["epoch"] - best))
        return nearest

    return some.assign(last=[line["epochs"][-1] for line in some.line], best=list(map(near_best, some.line)))


def ratios_of(epochs: Iterable[Found], probe: str, what: str, reading: str) -> list[list[float]]:
    """Read the ratio of outlier samples to others, with its interval, in those epochs that have one."""
    groups = (epoch[probe][reading]["gradients"]["all"] for epoch in epochs)
    return [found[what] for found in groups if what in found]


def _compare(ratios: Sequence[Sequence[float]]) -> str:
    """Format mean and spread of ratios, and the number of runs whose interval lies above or below 1."""
    if not ratios:
        return "-"
    above = sum(low > 1 for _, low, _ in ratios)
    below = sum(high < 1 for _, _, high in ratios)
    return f"{spread(ratio for ratio, _, _ in ratios)} ({above} above, {below} below, of {len(ratios)})"


def gradients() -> Frame:
    """For each network, data set and probe: have outlier samples larger gradients than the rest?"""
    rows = []
    for key, group in measured().groupby(["network", "data"]):
        everything = [epoch for line in group.line for epoch in line["epochs"]]
        for probe, name in PROBES.items():
            for reading in READINGS:
                last = [epoch[probe][reading] for epoch in group["last"]]
                first, later = ([epoch for epoch in everything if (epoch["epoch"] <= _EARLY) == early]
                                for early in (True, False))  # fmt: skip
                rows.append(
                    (
                        *(*key, name, reading, len(group)),
                        spread([one["count"] for one in last], 1),
                        spread([one["gradients"]["all"]["n"] for one in last], 1),
                        *(
                            _compare(ratios_of(some, probe, "mean", reading))
                            for some in (first, later, group.best, group["last"])
                        ),
                        _compare(ratios_of(group["last"], probe, "median", reading)),
                        spread(ratio for ratio, _, _ in ratios_of(group["last"], probe, "loss", reading)),
                        spread(one["gradients"]["spearman"] for one in last),
                    )
                )
    header = ["network", "data", "probe", "reading", "seeds", "anomaly filters", "outlier samples",
              f"ratio of mean norms, epochs 1 to {_EARLY}", "later measured epochs", "epoch nearest to the best",
              "last epoch", "ratio of medians, last", "ratio of mean losses, last",
              "Spearman of votes and norm, last"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)


def _found(results: Sequence[Found], score: int) -> str:
    """Format AUROC and average precision of a score over several results."""
    if results[0]["auroc"][score] is None:
        return "-"
    areas = spread([one["auroc"][score] for one in results])
    return f"{areas} / {mean(one['precision'][score] for one in results):.2f}"


def mislabelled() -> Frame:
    """For each network, data set and probe: AUROC and average precision of the scores that find wrong labels."""
    some, rows = measured(), []
    scores = some.line.iloc[0]["scores"]
    for key, group in some.groupby(["network", "data"]):
        for probe, name in PROBES.items():
            for epoch, when in (("best", "nearest to the best"), ("last", "last")):
                ours, paper = ([one[probe][reading]["mislabelled"] for one in group[epoch]] for reading in READINGS)
                hits = f"{mean(one['hit'] for one in ours):.1f} of {mean(one['planted'] for one in ours):.0f}"
                cells = [_found(ours, score) for score in range(len(scores))]
                rows.append((*key, name, when, hits, _found(paper, 0), *cells))
    header = ["network", "data", "probe", "epoch", "with votes", "paper's votes", *scores]
    return pd.DataFrame(rows, columns=header)


def left_out() -> Frame:
    """For each network and data set: test loss and accuracy without outlier samples, minus those without random ones.

    With the spread over seeds and the standard error of the mean due to the draws of random samples, whose variance is
    pooled over the runs and readings of a network and data set.
    """
    rows = []
    for key, group in runs("h2").query("kind == 'leave_out'").groupby(["network", "data"]):
        arms = {reading: [line[reading] for line in group.line] for reading in READINGS}
        pairs = {reading: [arm for arm in some if "outliers" in arm] for reading, some in arms.items()}
        for reading in READINGS:
            cells: list[str] = []
            for what in ("best_loss", "last_loss", "best_acc", "last_acc"):
                cells.append(spread([line["all"][what] for line in group.line], 3))
                both = [[one[what] for one in arm["random"]] for some in pairs.values() for arm in some]
                gains = [arm["outliers"][what] - mean(one[what] for one in arm["random"]) for arm in pairs[reading]]
                if gains:
                    draws = len(pairs[reading][0]["random"])
                    error = sqrt(mean(map(variance, both)) * (1 + 1 / draws) / len(gains))
                    cells.append(f"{spread(gains, 3)} (draws {error:.3f})")
                else:
                    cells.append("-")
            counts = (spread([arm[name] for arm in arms[reading]], 1) for name in ("left_out", "wrong", "damaged"))
            rows.append((*key, reading, f"{len(pairs[reading])} of {len(group)}", *counts, *cells))
    header = ["network", "data", "reading", "seeds with 20 or more", "outlier samples", "mislabelled", "damaged"]
    for name in ("test loss at the best epoch", "at the end", "accuracy at the best epoch", "at the end"):
        header += [name, "without outlier samples, less without random ones (standard error from draws)"]
    return pd.DataFrame(rows, columns=header)
