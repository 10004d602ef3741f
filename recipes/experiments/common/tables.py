"""Lines of results put together: by training, as mean and spread, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from recipes.experiments.common.trainings import CONDITIONS, OVERFITTING, Training

__all__ = ["Line", "group", "is_long", "is_overfitting", "kinds", "markdown", "spread"]

Line = dict[str, Any]


def group(lines: Iterable[Line], *names: str) -> dict[tuple[str, ...], list[Line]]:
    """The lines by settings of the trainings: alphabetically, conditions in their own order, not as the lines stand."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line["cell"][name] for name in names), []).append(line)
    conditions = list(CONDITIONS)
    return {
        key: groups[key]
        for key in sorted(groups, key=lambda key: [(conditions.index(v) if v in CONDITIONS else -1, v) for v in key])
    }


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and, from two values on, standard deviation; values that could not be had are left out."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    text = f"{mean(found):.{digits}f}"
    return f"{text} ± {stdev(found):.{digits}f}" if len(found) > 1 else text


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def is_overfitting(line: Line) -> bool:
    """Whether a training belongs to the conditions that overfit, and not to the healthy controls."""
    return line["cell"]["condition"] in OVERFITTING


def kinds(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """The overfitting trainings and the healthy ones."""
    found: tuple[list[Line], list[Line]] = [], []
    for line in lines:
        found[not is_overfitting(line)].append(line)
    return found


def is_long(line: Line) -> bool:
    """Whether a training saw more images in an epoch than those of the full matrix do."""
    return bool(line["cell"]["train_size"] > Training.train_size)
