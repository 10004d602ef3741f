"""What all figures have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_anomaly.verdicts.anomalies import ANOMALY, DEAD, NONFINITE, NORMAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; the largest component gets the first. Those of the
# filter browser, on light and dark ground, are in `browser/colours.js`.
COMPONENT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# Told apart by lightness too: pale, strong, dark. The browser has the same on light ground.
ISOLATED = "isolated"  # a normal filter that sets samples apart
VERDICT_COLOURS = {
    NORMAL: "#BCD3E8",
    ISOLATED: "#0072B2",
    ANOMALY: "#D55E00",
    f"{ANOMALY} and {ISOLATED}": "#CC79A7",
    DEAD: "#4D4D4D",
    NONFINITE: "#E8D820",
}
_STYLE = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "figure.dpi": 100}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Make a figure (inches) whose style, within the `with` block, is not the user's."""
    import matplotlib.style

    from lightning_anomaly.plots.notebook import NotebookFigure

    with matplotlib.style.context(["default", _STYLE]):
        yield NotebookFigure(figsize=(width, height), layout="constrained")


def layer_text(name: str, length: int) -> str:
    """A layer's name in words."""
    return f"layer {short_name(name, length)}" if name else "the model"


def short_name(name: str, length: int) -> str:
    """A layer's name, cut at the left, where names resemble each other."""
    return (name if len(name) <= length else "…" + name[1 - length :]) or "(the model)"
