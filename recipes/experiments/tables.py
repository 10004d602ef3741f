"""Lines of results put together: by cell, as mean and spread, as a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

__all__ = ["Line", "group", "markdown", "spread"]

Line = dict[str, Any]


def group(lines: Iterable[Line], *names: str) -> dict[tuple[str, ...], list[Line]]:
    """The lines by fields of their cells, in the order in which they come."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line["cell"][name] for name in names), []).append(line)
    return groups


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
