"""Losses and counts of filters over a run, in one chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_anomaly.filters.filter_figures import ISOLATED, VERDICT_COLORS
from lightning_anomaly.filters.layer_report import ANOMALY
from lightning_anomaly.pages.figure_style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSS_STYLES = {"training": "-", "validation": "--"}
_COUNTS = {
    "isolated": ("isolated filters", VERDICT_COLORS[ISOLATED], "--"),
    "count": ("anomaly filters", VERDICT_COLORS[ANOMALY], "-"),
}


def curves_figure(history: Sequence[Mapping[str, Any]], losses: Mapping[str, str]) -> Figure:
    """Draw losses on the left axis and counts of filters on the right axis, at every validation so far.

    `history` is `AnomalyFilterCallback.history`, and `losses` has the names of its "training" and "validation" loss. A
    missing value leaves a gap.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    legible = rc_context({"font.size": 15, "legend.fontsize": 14, "lines.linewidth": 2.5})  # on a card of TensorBoard
    with new_figure(7.0, 5.0) as figure, legible:
        left = figure.add_subplot(ylabel="loss" if losses else "")
        right = left.twinx()
        for kind, name in losses.items():
            values = [entry.get("logged", {}).get(name, math.nan) for entry in history]
            left.plot(values, _LOSS_STYLES[kind], color="black", marker="o", markersize=4, label=name)
        for key, (words, color, style) in _COUNTS.items():
            values = [entry["metrics"].get(key, math.nan) for entry in history]
            label = f"{words}: not measured" if all(map(math.isnan, values)) else words
            right.plot(values, style, color=color, marker="o", markersize=4, label=label, clip_on=False)
        right.set_ylabel("filters")
        right.set_ylim(0, max(1, right.get_ylim()[1]))  # so that counts of 0 have whole ticks
        right.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        left.yaxis.set_major_locator(MaxNLocator(5))
        left.grid(axis="y", color="#E5E5E5")
        _label_curve_axis(left, history)
        for axes in (left, right):
            axes.spines["top"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _label_curve_axis(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Label validations with epochs, or with steps if an epoch has several."""
    from matplotlib.ticker import MaxNLocator

    epochs = [entry["epoch"] for entry in history]
    by_epoch = len(set(epochs)) == len(epochs)
    numbers = epochs if by_epoch else [entry["step"] for entry in history]
    ticks = MaxNLocator(10, integer=True).tick_values(0, max(1, len(history) - 1))
    places = [int(tick) for tick in ticks if 0 <= tick < len(history)]
    axes.set_xticks(places, [str(numbers[place]) for place in places])
    axes.set(xlim=(-0.5, len(history) - 0.5), xlabel="epoch" if by_epoch else "step")
