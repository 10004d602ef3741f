"""A map of all filters, coloured by verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_anomaly.filters.layer_report import ANOMALY, DEAD, LIVE, NONFINITE, NORMAL, LayerReport
from lightning_anomaly.pages.style import layer_text, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ISOLATED = "isolated"  # a normal filter with isolated samples
VERDICT_COLOURS = {  # they differ in lightness too; the browser has the same on light ground
    NORMAL: "#BCD3E8",
    ISOLATED: "#0072B2",
    ANOMALY: "#D55E00",
    f"{ANOMALY} and {ISOLATED}": "#CC79A7",
    DEAD: "#4D4D4D",
    NONFINITE: "#E8D820",
}
_MAP_WIDTH = 6.4  # of the cells (inches)
_LINE, _SPACE = 0.25, 0.07  # least height of a layer, for its name, and the space below it (inches)
_TALLEST = 18.0  # height of all layers (inches)
_COLUMNS = 64  # cells in a row


def verdict_map(layers: Mapping[str, LayerReport], measured: bool = True) -> Figure:
    """Draw a map of all filters, a cell for each, coloured by verdict, with a block of rows for each layer.

    Normal filters and anomaly filters have different colours if they have isolated samples. The figure is at most
    10 x 20 inches: cells get flatter with many filters, and of many layers only some are named. Nothing is counted
    unless it was `measured`.
    """
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    verdicts = Counter(verdict for layer in layers.values() for verdict in layer.verdicts)
    share = verdicts[ANOMALY] / max(1, sum(verdicts[verdict] for verdict in LIVE))
    total = max(_LINE, sum(_block_height(len(layer.verdicts)) + _SPACE for layer in layers.values()))
    shrink = min(1.0, _TALLEST / total)
    with new_figure(9.6, total * shrink + 1.8) as figure, rc_context({"font.size": 14, "axes.titlesize": 14}):
        axes = figure.add_subplot()
        top = free = 0.0  # where the next block begins, and where the next name has room
        for name, layer in layers.items():
            height = _block_height(len(layer.verdicts)) * shrink
            _draw_block(axes, layer, top, height)
            if top >= free:
                free = top + _LINE
                text: dict[str, Any] = {"va": "center", "fontsize": 13, "parse_math": False}
                middle = top + min(height, _LINE) / 2
                axes.text(-0.1, middle, layer_text(name, 18), ha="right", **text)
                analyzed = measured and {*layer.verdicts} != {NONFINITE}
                count = f"{len(layer.filters(ANOMALY))} of {len(layer.verdicts)}" if analyzed else "-"
                axes.text(_MAP_WIDTH + 0.1, middle, count, ha="left", **text)
            top += height + _SPACE * shrink
        axes.set(xlim=(0, _MAP_WIDTH), ylim=(max(top, _LINE), 0))
        axes.axis("off")
        counts = (
            f"{verdicts[ANOMALY]} of {verdicts.total()} filters are anomaly filters, {100 * share:.1f}% of those with "
            f"varying maps"
        )
        axes.set_title(
            f"{counts if measured else 'anomaly filters: not measured'}\n"
            f"(cells: filters, {_COLUMNS} in a row; at the right: anomaly filters of a layer)"
        )
        kinds = Counter(kind for layer in layers.values() for kind in _kinds(layer))
        shown = [kind for kind in VERDICT_COLOURS if kinds[kind]]
        patches = [Patch(facecolor=VERDICT_COLOURS[kind], label=f"{kind}: {kinds[kind]}") for kind in shown]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(3, len(shown)))
    return figure


def _block_height(size: int) -> float:
    """Return the height of a layer's block (inches): square cells, stretched to at least a line of text."""
    return max(_LINE, math.ceil(size / _COLUMNS) * _MAP_WIDTH / _COLUMNS)


def _draw_block(axes: Axes, layer: LayerReport, top: float, height: float) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap

    rows = max(1, math.ceil(len(layer.verdicts) / _COLUMNS))
    codes = np.full(rows * _COLUMNS, -1)
    codes[: len(layer.verdicts)] = [list(VERDICT_COLOURS).index(kind) for kind in _kinds(layer)]
    x, y = np.linspace(0, _MAP_WIDTH, _COLUMNS + 1), np.linspace(top, top + height, rows + 1)
    cells = np.ma.masked_less(codes.reshape(rows, _COLUMNS), 0)
    cmap = ListedColormap(list(VERDICT_COLOURS.values()))
    mesh = axes.pcolormesh(x, y, cells, cmap=cmap, vmin=-0.5, vmax=len(VERDICT_COLOURS) - 0.5, antialiased=True)
    mesh.set(edgecolor="white", linewidth=0.8 if height / rows > 0.04 else 0)


def _kinds(layer: LayerReport) -> list[str]:
    """Return a key of `VERDICT_COLOURS` for each filter, by its verdict and whether it has isolated samples."""
    names = {NORMAL: ISOLATED, ANOMALY: f"{ANOMALY} and {ISOLATED}"}
    isolated = {*layer.isolated_filters}
    return [
        names.get(verdict, verdict) if index in isolated else verdict for index, verdict in enumerate(layer.verdicts)
    ]
