"""Colors, text style and names that all figures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinct for color-blind readers; the largest component gets the first. The filter browser
# has its colors in `colors.js`.
COMPONENT_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_STYLE = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "figure.dpi": 100}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Make a figure (inches); within the `with` block, the user's matplotlib style does not apply."""
    import matplotlib.style

    from lightning_anomaly.pages.notebook_figure import NotebookFigure

    with matplotlib.style.context(["default", _STYLE]):
        yield NotebookFigure(figsize=(width, height), layout="constrained")


def layer_text(name: str, length: int) -> str:
    """Return `layer NAME`, or `the model` for a model that is one layer; cut at the left, where names are alike."""
    short = name if len(name) <= length else "…" + name[1 - length :]
    return f"layer {short}" if name else "the model"
