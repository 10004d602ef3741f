"""Experiments on a few digits."""

from pathlib import Path
from typing import Any

from recipes.experiments.__main__ import parse, run


def quick_lines(experiment: str, folder: Path, *more: str) -> list[dict[str, Any]]:
    """The lines of an experiment, which are written to a folder; `more` are further options."""
    lines: list[dict[str, Any]] = run(parse([experiment, "--quick", "--workers", "1", "--lines", str(folder), *more]))
    return lines
