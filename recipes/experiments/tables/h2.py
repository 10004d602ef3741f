"""H2: gradients of outlier samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from recipes.experiments.tables.writer import Frame, runs, spread

READINGS = ("ours", "paper")
PROBES = {"train": "training", "val": "validation"}
_EARLY = 2  # the first epochs


def ratios_of(epochs: Iterable[dict[str, Any]], probe: str, reading: str) -> list[list[float]]:
    """Read the ratio of outlier samples to others, with its interval, in those epochs that have one."""
    groups = (epoch[probe][reading]["gradients"]["all"] for epoch in epochs)
    return [found["mean"] for found in groups if "mean" in found]


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
    for key, group in runs("h2").groupby(["network", "data"]):
        everything = [epoch for line in group.line for epoch in line["epochs"]]
        last = [line["epochs"][-1] for line in group.line]
        first, later = ([epoch for epoch in everything if (epoch["epoch"] <= _EARLY) == early]
                        for early in (True, False))  # fmt: skip
        for probe, name in PROBES.items():
            for reading in READINGS:
                outliers = spread([epoch[probe][reading]["gradients"]["all"]["n"] for epoch in last], 1)
                cells = [_compare(ratios_of(some, probe, reading)) for some in (first, later, last)]
                rows.append((*key, name, reading, len(group), outliers, *cells))
    header = ["network", "data", "probe", "reading", "seeds", "outlier samples, last epoch",
              f"ratio of mean norms, epochs 1 to {_EARLY}", "later measured epochs", "last epoch"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)
