"""A map of all filters, coloured by verdict."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from lightning_anomaly.plots.style import ISOLATED_COLOURS, VERDICT_COLOURS, layer_text, new_figure
from lightning_anomaly.report import AnomalyReport, LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, NONFINITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAP_WIDTH = 6.4  # the cells (inches)
_LINE, _SPACE = 0.15, 0.07  # least height of a layer, a line of text, and the space below it (inches)
_SPARE = 5.0  # height that large layers may take beyond that, before cells get smaller (inches)
_TALLEST = 18.0  # (inches)
_COLOURS = VERDICT_COLOURS | {f"{verdict}, isolated": colour for verdict, colour in ISOLATED_COLOURS.items()}
_ALWAYS = tuple(verdict for verdict in VERDICT_COLOURS if verdict != NONFINITE)  # in the legend
_ROWS = (32, 64, 128, 256)  # cells in a row; smaller ones would be hard to see


def verdict_map(report: AnomalyReport) -> Figure:
    """Draw a map of all filters, one cell each, coloured by verdict: a block of rows for every layer.

    Filters that set samples apart from all others (`isolated`) have a colour of their own for each verdict. The figure
    stays within 10 x 20 inches: with many filters cells are smaller, and of many layers only some are named.

    Args:
        report: The report.

    Returns:
        The figure.
    """
    sizes = [len(layer.verdicts) for layer in report.layers.values()]
    heights = {columns: sum(_block_height(size, columns) + _SPACE for size in sizes) for columns in _ROWS}
    room = len(sizes) * (_LINE + _SPACE) + _SPARE
    columns = next((columns for columns in _ROWS if heights[columns] <= room), _ROWS[-1])
    shrink = min(1.0, _TALLEST / max(heights[columns], _LINE))
    named = math.ceil(1 / shrink)  # one layer in so many
    with new_figure(9.6, max(heights[columns] * shrink, _LINE) + 1.1) as figure:
        axes = figure.add_subplot()
        top = 0.0
        for place, (name, layer) in enumerate(report.layers.items()):
            height = _block_height(len(layer.verdicts), columns) * shrink
            _draw_block(axes, layer, top, height, columns)
            if place % named == 0:
                text: dict[str, Any] = {"va": "center", "fontsize": 8, "parse_math": False}
                middle = top + min(height, _LINE) / 2
                axes.text(-0.1, middle, layer_text(name, 30), ha="right", **text)
                count = f"{len(layer.filters(ANOMALY))} of {len(layer.verdicts)}"
                axes.text(_MAP_WIDTH + 0.1, middle, count, ha="left", **text)
            top += height + _SPACE * shrink
        axes.set(xlim=(0, _MAP_WIDTH), ylim=(max(top, _LINE), 0))
        axes.axis("off")
        axes.set_title(_map_title(report, sum(sizes), columns, named))
        _verdict_legend(figure, report)
    return figure


def _block_height(size: int, columns: int) -> float:
    """Height of a layer's block (inches): square cells, stretched if that is less than a line of text."""
    return max(_LINE, math.ceil(size / columns) * _MAP_WIDTH / columns)


def _map_title(report: AnomalyReport, size: int, columns: int, named: int) -> str:
    if not size:
        return "No filters were analyzed"
    unnamed = f"; one layer in {named} is named" if named > 1 else ""
    return (
        f"{report.count} of {size} filters are anomaly filters, {100 * report.fraction:.1f}% of those with varying maps"
        f"\n(cells: filters, {columns} in a row; at the right: anomaly filters of a layer{unnamed})"
    )


def _draw_block(axes: Axes, layer: LayerReport, top: float, height: float, columns: int) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap

    rows = max(1, math.ceil(len(layer.verdicts) / columns))
    codes = np.full(rows * columns, -1)
    codes[: len(layer.verdicts)] = [list(_COLOURS).index(kind) for kind in _kinds(layer)]
    x, y = np.linspace(0, _MAP_WIDTH, columns + 1), np.linspace(top, top + height, rows + 1)
    cells = np.ma.masked_less(codes.reshape(rows, columns), 0)
    cmap = ListedColormap(list(_COLOURS.values()))
    mesh = axes.pcolormesh(x, y, cells, cmap=cmap, vmin=-0.5, vmax=len(_COLOURS) - 0.5, antialiased=True)
    mesh.set(edgecolor="white", linewidth=8 * _MAP_WIDTH / columns if height / rows > 0.04 else 0)


def _verdict_legend(figure: Figure, report: AnomalyReport) -> None:
    from matplotlib.patches import Patch

    counts = Counter(kind for layer in report.layers.values() for kind in _kinds(layer))
    shown = [kind for kind in _COLOURS if counts[kind] or kind in _ALWAYS]
    patches = [Patch(facecolor=_COLOURS[kind], label=f"{kind}: {counts[kind]}") for kind in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(shown))


def _kinds(layer: LayerReport) -> list[str]:
    """The verdict of each filter, and whether it sets samples apart: keys of `_COLOURS`."""
    apart = layer.isolated.any(1).tolist()
    return [f"{verdict}, isolated" if own else verdict for verdict, own in zip(layer.verdicts, apart, strict=True)]
