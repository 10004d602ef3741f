"""Runs as a frame, and the format of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from statistics import mean, stdev
from typing import Any

import pandas as pd

from recipes.experiments.spec import CONDITIONS, OVERFITTING, TRAIN_SIZE
from recipes.experiments.store import RESULTS, read_lines

Frame = Any  # a pandas DataFrame; pandas has no types


def runs(name: str) -> Frame:
    """Read the lines of an experiment, one row each: the settings of the run, and the whole line as `line`."""
    lines = _lines(name)
    frame = pd.DataFrame([{**line["cell"], "line": line} for line in lines])
    frame["overfitting"] = frame.condition.isin(OVERFITTING)
    frame["condition"] = pd.Categorical(frame.condition, list(CONDITIONS), ordered=True)
    frame["long"] = frame.train_size > TRAIN_SIZE
    return frame


@cache
def _lines(name: str) -> list[dict[str, Any]]:
    return read_lines(RESULTS / f"{name}.jsonl")


def kinds(some: Frame) -> tuple[Frame, Frame]:
    """Split runs into overfitting and healthy ones."""
    return some[some.overfitting], some[~some.overfitting]


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """Format the mean and, for two or more values, the standard deviation; None is skipped."""
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    text = f"{mean(present):.{digits}f}"
    return f"{text} ± {stdev(present):.{digits}f}" if len(present) > 1 else text
