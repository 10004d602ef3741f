"""Whether, where and since when a network distinguishes training images from validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_anomaly.pages.style import new_figure, short_name

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

# As `TwoSampleCallback.history`. If the output is not compared, or a layer has no entry in `share_p_values`, its values
# in `metrics` are missing or come from an earlier validation.
History = Sequence[Mapping[str, Any]]

_LAYER = "layer/"  # prefix of the layers' metrics
_SHADES = ("#F2F2F2", "#FDD9B5", "#D55E00", "#7A2E00")  # of shares from 0, or what chance explains, to the largest
_CHANCE, _SIGNIFICANT = "#8C8C8C", "#D55E00"
_FULL = 0.2  # least share for the darkest shade, so that chance looks pale
_AREAS = (0.48, 0.6)  # always on the axis, so that chance looks flat
_ROW, _LEAST, _TALLEST = 0.2, 0.8, 11.5  # height of a named layer, and least and largest of all layers (inches)


def comparison_figure(history: History, significance: float) -> Figure:
    """Draw whether and where a network distinguishes training from validation images, at every validation so far.

    The upper curve is how often the output is more confident on a training image than on a validation image. Below is a
    row for each layer of the last validation: the share of its filters that distinguish the two, gray where chance
    explains it (p-values, corrected for the number of layers, above `significance`), hatched where nothing could be
    compared. The figure is at most 7 x 16 inches, so of many layers only some are named.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    percent = StrMethodFormatter("{x:.0%}")  # matplotlib 3.8 misreads a format that contains %
    layers = [key.removeprefix(_LAYER) for key in history[-1]["metrics"] if key.startswith(_LAYER)]
    height = min(_TALLEST, max(_LEAST, _ROW * len(layers)))
    legible = rc_context({"font.size": 11, "axes.titlesize": 11, "figure.titlesize": 12})  # on a card of TensorBoard
    with new_figure(7.0, height + 4.4) as figure, legible:
        grid = figure.add_gridspec(3, 1, height_ratios=[1.6, height, 0.12])
        output_axes = figure.add_subplot(grid[0])
        _draw_output(output_axes, history, significance)
        layer_axes = figure.add_subplot(grid[1], sharex=output_axes)
        shares, significant = _shares(history, layers, significance)
        mesh = _draw_layers(layer_axes, shares, significant)
        _name_layers(layer_axes, layers, shares[:, -1], significant[:, -1], height)
        number_validations(layer_axes, history)
        output_axes.tick_params(labelbottom=False)
        ticks, words = MaxNLocator(5, steps=[1, 2, 5, 10]), f"{_legend(significance)[1]}; gray: it does"
        bar = figure.add_subplot(grid[2])
        figure.colorbar(mesh, bar, orientation="horizontal", ticks=ticks, format=percent, label=words)
        figure.suptitle("Does the network distinguish training from validation images?")
    return figure


def _legend(significance: float) -> tuple[str, str]:
    return f"p > {significance:g}: chance explains it", f"p ≤ {significance:g}: chance does not"


def _draw_output(axes: Axes, history: History, significance: float) -> None:
    areas = [entry["metrics"]["confidence_auc"] if entry["compares_output"] else math.nan for entry in history]
    significant = [entry["metrics"].get("confidence_p_value", 1) <= significance for entry in history]
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.plot(areas, color=_CHANCE, linewidth=1.0)
    looks = ((False, "white", _CHANCE), (True, _SIGNIFICANT, _SIGNIFICANT))
    for (is_significant, face, edge), words in zip(looks, _legend(significance), strict=True):
        places = [place for place, flag in enumerate(significant) if flag is is_significant]
        size = min(25.0, max(4.0, 1200 / len(history)))  # square points
        axes.scatter(places, [areas[place] for place in places], size, face, edgecolors=edge, label=words, zorder=3)
    low, high = (pick(*_AREAS, *(area for area in areas if area == area)) for pick in (min, max))
    axes.set(ylim=(low - 0.02, high + 0.3 * (high - low)), ylabel="area under ROC curve")  # room for the legend
    description = (
        "how often the output is more confident on a training image\nthan on a validation image; 0.5: treats both alike"
    )
    unmeasured = all(map(math.isnan, areas))
    axes.set_title(f"Whether: {'not measured, as the output is not compared' if unmeasured else description}")
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=9, columnspacing=1)
    axes.spines[["top", "right"]].set_visible(False)


def _shares(history: History, layers: Sequence[str], significance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return shares `(layers, validations)`, NaN where none was compared, and whether they are above chance."""
    import numpy as np

    shares = np.full((len(layers), len(history)), np.nan)
    significant = np.zeros_like(shares, dtype=bool)
    for column, entry in enumerate(history):
        for row, name in enumerate(layers):
            if name in entry["share_p_values"]:
                shares[row, column] = entry["metrics"][_LAYER + name]
                significant[row, column] = entry["share_p_values"][name] <= significance
    return shares, significant & (shares > 0)


def _draw_layers(axes: Axes, shares: np.ndarray, significant: np.ndarray) -> QuadMesh:
    """Draw the shares that chance does not explain, and 0 for the others."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    missing = np.isnan(shares)
    description = "share of each layer's filters that differ significantly;\nat the right, the last"
    hatched = "; hatched: not compared" if missing.any() else ""
    axes.set_title(f"Where: {description}{hatched}" if len(shares) else "Where: not measured, as no layer is compared")
    axes.patch.set(hatch="////", edgecolor="#CCCCCC")
    rows, columns = shares.shape
    axes.set_ylim(max(rows, 1) - 0.5, -0.5)
    x, y, highest = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, max(_FULL, np.nanmax(shares, initial=0))
    cells = np.ma.masked_where(missing, np.where(significant, shares, 0))
    cmap = LinearSegmentedColormap.from_list("", _SHADES)
    return axes.pcolormesh(x, y, cells, cmap=cmap, vmin=0, vmax=highest)


def _name_layers(axes: Axes, layers: Sequence[str], shares: np.ndarray, significant: np.ndarray, height: float) -> None:
    """Write layer names at the left and the last shares `(layers,)` at the right."""
    every = max(1, math.ceil(_ROW * len(layers) / height))
    named = range(0, len(layers), every)
    axes.set_yticks(named, [short_name(layers[row], 18) for row in named], fontsize=10, parse_math=False)
    axes.tick_params(axis="y", length=0)
    if every > 1:
        axes.set_ylabel(f"one layer in {every} is named")
    for row in named:
        text = "-" if math.isnan(shares[row]) else f"{shares[row]:.0%}"
        weight = "bold" if significant[row] else "normal"
        axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=10, fontweight=weight)


def number_validations(axes: Axes, history: History) -> None:
    """Label validations with epochs, or with steps if an epoch has several."""
    from matplotlib.ticker import MaxNLocator

    epochs = [entry["epoch"] for entry in history]
    by_epoch = len(set(epochs)) == len(epochs)
    numbers = epochs if by_epoch else [entry["step"] for entry in history]
    ticks = MaxNLocator(10, integer=True).tick_values(0, max(1, len(history) - 1))
    places = [int(tick) for tick in ticks if 0 <= tick < len(history)]
    axes.set_xticks(places, [str(numbers[place]) for place in places])
    axes.set(xlim=(-0.5, len(history) - 0.5), xlabel="epoch" if by_epoch else "step")
