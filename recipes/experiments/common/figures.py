"""Curves of trainings, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from lightning_anomaly.plots.style import COMPONENT_COLOURS
from recipes.experiments.common.curves import layers_of, signal
from recipes.experiments.common.tables import Line, group
from recipes.experiments.common.trainings import CONDITIONS, OVERFITTING

__all__ = ["Panel", "draw_panels"]

Panel = tuple[str, str, str, bool]
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED, _ = COMPONENT_COLOURS
_COLOURS = {
    "overfitting": _BLUE,
    "noise10": _ORANGE,
    "noise30": _GREEN,
    "noise20": _RED,
    "augmented": _PURPLE,
    "regularised": "black",
    "more_data": _SKY,
}


def draw_panels(lines: Sequence[Line], panels: Sequence[Panel]) -> Figure:
    """Signals over the epochs, one line for each condition, mean over the seeds.

    Args:
        lines: Trainings; each network and data set is a row.
        panels: The columns: title, signal and reading as in `curves.signal`, and whether of the last layer alone.
    """
    groups = group(lines, "network", "data")
    figure = Figure(figsize=(3 * len(panels), 2.3 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for row, ((network, data), runs) in zip(axes, groups.items(), strict=True):
        for (condition,), some in group(runs, "condition").items():
            style = "-" if condition in OVERFITTING else "--"
            for axis, (_, name, reading, last) in zip(row, panels, strict=True):
                curves = [signal(line, name, reading, layers_of(line, reading)[-1] if last else None) for line in some]
                average = [mean(values) for values in zip(*curves, strict=True)]
                epochs = range(1, len(average) + 1)
                axis.plot(epochs, average, style, color=_COLOURS[condition], label=condition, linewidth=1.3)
        row[0].set_ylabel(f"{network}\n{data}")
        for axis in row:
            top = max(axis.get_ylim()[1], 0.01)
            axis.set_ylim(-0.03 * top, top)  # a curve at 0 is seen
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel[0], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    lines_of = {str(line.get_label()): line for axis in axes[:, 0] for line in axis.get_lines()}
    shown = [name for name in CONDITIONS if name in lines_of]
    figure.legend([lines_of[name] for name in shown], shown, loc="outside lower center", ncols=6, fontsize=8)
    return figure
