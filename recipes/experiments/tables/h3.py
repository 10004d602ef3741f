"""H3: the flagged filters, and the effect of masking them or as many other filters of the same layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from recipes.experiments.tables.curves import Line
from recipes.experiments.tables.writer import Frame, runs, spread

MOMENTS = {"0": "right after masking", "1": "after 1 further epoch", "3": "after 3 further epochs"}
READINGS = {"default": "default settings", "paper": "paper's settings"}
_LARGER_IS_BETTER = ("val_acc", "test_acc")
_PERMUTATIONS = 20_000


def values(line: Line, reading: str, arm: str, moment: str, measure: str, state: str = "last") -> list[float]:
    """Read a measure of every mask of an arm, or of "nothing"; empty if nothing was flagged or it does not exist."""
    arms = line["readings"][reading][state].get("arms")
    if arms is None:
        return []
    rows = line["nothing"][state] if arm == "nothing" else arms.get(arm, {})
    place = line["measures"].index(measure)
    return [row[place] for row in rows.get(moment, [])]


def average(line: Line, reading: str, arm: str, moment: str, measure: str, state: str = "last") -> float | None:
    """Return the mean of `values`, or None without any."""
    measured = values(line, reading, arm, moment, measure, state)
    return mean(measured) if measured else None


def standing(value: float, others: Sequence[float], measure: str) -> float:
    """Compute the share of the other masks that a mask beats; ties count half."""
    sign = 1 if measure in _LARGER_IS_BETTER else -1
    return mean((sign * value > sign * other) + (value == other) / 2 for other in others)


def permutation_p(masks: Sequence[Sequence[float]], measure: str) -> tuple[float, float]:
    """Test whether the first mask of every run is like the others; masks are given by their measure.

    Returns:
        The mean standing of the first masks among the others, and the two-sided p-value of the permutation test of the
        hypothesis that all masks of a run are exchangeable.
    """
    standings = [[standing(value, [*run[:i], *run[i + 1 :]], measure) for i, value in enumerate(run)] for run in masks]
    first = mean(run[0] for run in standings)
    random = np.random.default_rng(0)
    picked = [np.array(run)[random.integers(len(run), size=_PERMUTATIONS)] for run in standings]
    distances = np.abs(np.mean(picked, axis=0) - 0.5)
    extreme = int((distances >= abs(first - 0.5) - 1e-12).sum())
    return first, (1 + extreme) / (1 + _PERMUTATIONS)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _against(pairs: Sequence[tuple[float, float]], measure: str) -> str:
    """Format the number of pairs whose first is better, without ties, with the p-value of the sign test."""
    sign = 1 if measure in _LARGER_IS_BETTER else -1
    better = sum(sign * a > sign * b for a, b in pairs)
    decided = sum(a != b for a, b in pairs)
    return f"{better} of {decided} ({_p(binomtest(better, decided).pvalue)})" if decided else "-"


def flagged_runs(some: Frame, reading: str, moment: str = "0", state: str = "last") -> Frame:
    """Select the runs in which filters were flagged, and their mask was measured at that moment."""
    return some[[bool(values(line, reading, "anomaly", moment, "val_loss", state)) for line in some.line]]


def _cases() -> Iterator[tuple[str, str, str, Frame]]:
    """Yield reading, state, moment and their runs."""
    for reading in READINGS:
        for state, moment in (("best", "0"), *(("last", moment) for moment in MOMENTS)):
            yield reading, state, moment, flagged_runs(runs("h3"), reading, moment, state)


def contest() -> Frame:
    """Over all runs: does the mask of anomaly filters beat the others?"""
    rows = []
    for measure in ("val_loss", "val_acc", "test_loss", "test_acc"):
        for reading, state, moment, some in _cases():
            masked = [values(line, reading, "anomaly", moment, measure, state)[0] for line in some.line]
            draws = [values(line, reading, "random", moment, measure, state) for line in some.line]
            share, p = permutation_p([[mask, *others] for mask, others in zip(masked, draws, strict=True)], measure)
            cells = []
            for arm in ("l1", "sparsest", "nothing"):
                others = (average(line, reading, arm, moment, measure, state) for line in some.line)
                cells.append(_against([(a, b) for a, b in zip(masked, others, strict=True) if b is not None], measure))
            when = "best epoch, " + MOMENTS["0"] if state == "best" else MOMENTS[moment]
            rows.append((measure, READINGS[reading], when, len(some), f"{share:.2f} ({_p(p)})", *cells))
    header = ["measure", "reading", "when", "runs", "share of random draws beaten (permutation p)",
              "better than l1 in (sign test p)", "than sparsest", "than nothing masked"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)


def what_is_flagged() -> Frame:
    """The flagged filters: their sparsity, and whether masking has an effect."""
    rows = []
    for reading, state, moment, cases in _cases():
        for network, group in cases.groupby("network") if moment == "0" else []:
            results = [line["readings"][reading][state] for line in group.line]
            sparsity = [means for result in results for means in result["sparsity"].values()]
            losses = [[values(line, reading, arm, "0", "val_loss", state)[0] for arm in ("nothing", "anomaly")]
                      for line in group.line]  # fmt: skip
            masked = spread([sum(result["masked"].values()) for result in results], 1)
            shares = [spread(part) for part in zip(*sparsity, strict=True)]  # of flagged and of normal filters
            same = f"{sum(a == b for a, b in losses)} of {len(group)}"
            rows.append((f"{READINGS[reading]}, {state} epoch", network, len(group), masked, *shares, same))
    header = ["reading", "network", "runs", "flagged filters", "their sparsity",
              "sparsity of the layers' normal filters", "validation loss the same in"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)
