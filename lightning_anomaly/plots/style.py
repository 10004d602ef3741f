"""What all figures have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "figure.dpi": 100}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure that looks the same whatever the user's matplotlib style is, while it is filled (inches)."""
    import matplotlib.style

    from lightning_anomaly.plots.notebook import NotebookFigure

    with matplotlib.style.context(["default", _STYLE]):
        yield NotebookFigure(figsize=(width, height), layout="constrained")


def layer_text(name: str, length: int) -> str:
    """A layer's name, cut at the left, where names resemble each other."""
    if not name:
        return "the model"
    return "layer " + (name if len(name) <= length else "…" + name[1 - length :])
