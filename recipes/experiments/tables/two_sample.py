"""Filters that tell training from validation images: the alarms of each way to count them."""

from __future__ import annotations

import pandas as pd

from recipes.experiments.tables.curves import signal
from recipes.experiments.tables.writer import Frame, kinds, runs

_CHANCE = 0.01
# What tells training from validation images: rule, statistic, and whether of the last layer alone.
_STATISTICS = {
    "filters, largest value": ("max", "fraction", False),
    "last convolution": ("max", "fraction", True),
    "mean area": ("max", "auc", False),
    "last convolution's mean area": ("max", "auc", True),
    "filters, mean value": ("mean", "fraction", False),
    "hidden units": ("units", "fraction", False),
}


def alarms() -> Frame:
    """For each network, data set and seed: overfitting / healthy runs with a p-value below 1% after any epoch."""

    def cell(group: Frame, rule: str, statistic: str, last: bool) -> str:
        name = f"p {rule} {statistic}{' last' if last else ''}"
        below = [[min(signal(line, name)) < _CHANCE for line in kind.line if name in line["epochs"][0]]
                 for kind in kinds(group)]  # fmt: skip
        return " / ".join(f"{sum(alarms)} of {len(alarms)}" if alarms else "-" for alarms in below)

    by = ["network", "data", "seed"]
    groups = runs("two_sample").groupby(by)
    rows = [[*key, *(cell(group, *way) for way in _STATISTICS.values())] for key, group in groups]
    return pd.DataFrame(rows, columns=[*by, *_STATISTICS])
