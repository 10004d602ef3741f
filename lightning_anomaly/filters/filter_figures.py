"""Figures of filters: all by verdict, the points of those with the clearest anomalies, and curves over a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly.filters.layer_report import ANOMALY, CLUSTERED, DEAD, NONFINITE, NORMAL, LayerReport
from lightning_anomaly.pages.figures import COMPONENT_COLORS, layer_text, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ISOLATED = "isolated"  # a normal filter with isolated samples
VERDICT_COLORS = {  # they differ in lightness too; the browser has the same on light ground
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
_PANELS = 6
_MARKERS = "osD^v"  # the first goes with each color, then the second, and so on
_ENTRY = 1.35  # width of an entry in the legend (inches)
_CLEAR = 7.0  # larger gaps count as equally clear (spreads of the other samples)
_LOSS_STYLES = {"training": "-", "validation": "--"}
_COUNTS = {
    "isolated": ("isolated filters", VERDICT_COLORS[ISOLATED], "--"),
    "count": ("anomaly filters", VERDICT_COLORS[ANOMALY], "-"),
}


def verdict_map(layers: Mapping[str, LayerReport], measured: bool = True) -> Figure:
    """Draw a map of all filters, a cell for each, colored by verdict, with a block of rows for each layer.

    The figure is at most 10 x 20 inches: cells get flatter with many filters, and of many layers only some are named.
    """
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    verdicts = Counter(verdict for layer in layers.values() for verdict in layer.verdicts)
    share = verdicts[ANOMALY] / max(1, sum(verdicts[verdict] for verdict in CLUSTERED))
    total = max(_LINE, sum(_block_height(len(layer.verdicts)) + _SPACE for layer in layers.values()))
    shrink = min(1.0, _TALLEST / total)
    with new_figure(9.6, total * shrink + 1.8) as figure, rc_context({"font.size": 14, "axes.titlesize": 14}):
        axes = figure.add_subplot()
        top = free = 0.0  # where the next block begins, and where the next name has room
        for name, layer in layers.items():
            height = _block_height(len(layer.verdicts)) * shrink
            _draw_verdict_block(axes, layer, top, height)
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
        title = "anomaly filters: not measured"
        if measured:
            flagged = f"{verdicts[ANOMALY]} of {verdicts.total()} filters are anomaly filters"
            title = f"{flagged}, {100 * share:.1f}% of those with varying maps"
        cells = f"(cells: filters, {_COLUMNS} in a row; at the right: anomaly filters of a layer)"
        axes.set_title(f"{title}\n{cells}")
        kinds = Counter(kind for layer in layers.values() for kind in _verdict_kinds(layer))
        shown = [kind for kind in VERDICT_COLORS if kinds[kind]]
        patches = [Patch(facecolor=VERDICT_COLORS[kind], label=f"{kind}: {kinds[kind]}") for kind in shown]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(3, len(shown)))
    return figure


def _block_height(size: int) -> float:
    """Return the height of a layer's block (inches): square cells, stretched to at least a line of text."""
    return max(_LINE, math.ceil(size / _COLUMNS) * _MAP_WIDTH / _COLUMNS)


def _draw_verdict_block(axes: Axes, layer: LayerReport, top: float, height: float) -> None:
    import numpy as np
    from matplotlib.colors import ListedColormap

    rows = max(1, math.ceil(len(layer.verdicts) / _COLUMNS))
    codes = np.full(rows * _COLUMNS, -1)
    codes[: len(layer.verdicts)] = [list(VERDICT_COLORS).index(kind) for kind in _verdict_kinds(layer)]
    x, y = np.linspace(0, _MAP_WIDTH, _COLUMNS + 1), np.linspace(top, top + height, rows + 1)
    cells = np.ma.masked_less(codes.reshape(rows, _COLUMNS), 0)
    cmap = ListedColormap(list(VERDICT_COLORS.values()))
    mesh = axes.pcolormesh(x, y, cells, cmap=cmap, vmin=-0.5, vmax=len(VERDICT_COLORS) - 0.5, antialiased=True)
    mesh.set(edgecolor="white", linewidth=0.8 if height / rows > 0.04 else 0)


def _verdict_kinds(layer: LayerReport) -> list[str]:
    """Return a key of `VERDICT_COLORS` for each filter, by its verdict and whether it has isolated samples."""
    names = {NORMAL: ISOLATED, ANOMALY: f"{ANOMALY} and {ISOLATED}"}
    isolated = {*layer.isolated_filters}
    return [
        names.get(verdict, verdict) if index in isolated else verdict for index, verdict in enumerate(layer.verdicts)
    ]


def clearest_filters(layers: Mapping[str, LayerReport], max_filters: int = 6) -> list[tuple[str, int]]:
    """Find the anomaly filters with the clearest outliers, as `(layer, filter)`, by descending gap.

    The gap is the mean distance of the outliers from the mean of the others, in units of the spread of these. Gaps
    above 7 count as equal, and the larger spread comes first: else filters that are silent except for their outliers,
    common in sparse layers, would fill the list.
    """
    clearness: dict[tuple[str, int], tuple[float, float]] = {}
    for name, layer in layers.items():
        anomalies = layer.filters(ANOMALY)
        values = _outlier_gaps(layer.points[anomalies].double(), layer.outliers[anomalies]) if anomalies else []
        clearness.update(zip([(name, index) for index in anomalies], values, strict=True))
    return sorted(clearness, key=clearness.__getitem__, reverse=True)[:max_filters]


def _outlier_gaps(points: Tensor, outliers: Tensor) -> list[tuple[float, float]]:
    """Compute each filter's gap, at most `_CLEAR`, and spread from points `(F, N, 2)` and outliers `(F, N)`."""
    others = ~outliers
    count = others.sum(1).clamp_min(1)
    means = (points * others[..., None]).sum(1) / count[:, None]
    distances = torch.linalg.vector_norm(points - means[:, None], dim=2)
    spreads = ((distances.square() * others).sum(1) / count).sqrt()
    gaps = (distances * outliers).sum(1) / outliers.sum(1) / spreads.clamp_min(1e-6)  # all others may be one point
    gaps[outliers.all(1)] = 0
    return list(zip(gaps.clamp(max=_CLEAR).tolist(), spreads.tolist(), strict=True))


def filter_figure(layers: Mapping[str, LayerReport]) -> Figure | None:
    """Draw scatter plots of up to six filters with the clearest anomalies; None without anomaly filters.

    A panel shows all probe samples on the filter's two principal components. Colors are components of the mixture (1
    is the largest), rings are outlier samples.
    """
    chosen = clearest_filters(layers, _PANELS)
    if not chosen:
        return None
    count = sum(len(layer.filters(ANOMALY)) for layer in layers.values())
    columns = min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    width = max(5.5, 3.5 * columns)
    with new_figure(width, 3.0 * rows + 0.9) as figure:
        for place, (name, index) in enumerate(chosen):
            _draw_filter(figure.add_subplot(rows, columns, place + 1), name, layers[name], index)
        figure.suptitle(f"Filters with the clearest anomalies: {len(chosen)} of {count}")
        # The panel with the most components has the entries of all.
        panels = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles, labels = max(panels, key=lambda entries: len(entries[1]))
        ncols = math.ceil(len(labels) / math.ceil(len(labels) * _ENTRY / width))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, handlelength=1, columnspacing=1.2)
    return figure


def _draw_filter(axes: Axes, name: str, layer: LayerReport, index: int) -> None:
    points, labels, outliers = layer.points[index], layer.clusters[index], layer.outliers[index]
    counts = labels.bincount()
    components = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
    size = min(16.0, max(3.0, 6000 / len(points)))  # square points
    for rank, component in enumerate(components):
        x, y = points[labels == component].T.tolist()
        turn, place = divmod(rank, len(COMPONENT_COLORS))
        color, marker = COMPONENT_COLORS[place], _MARKERS[turn % len(_MARKERS)]
        dots = axes.scatter(x, y, s=size, c=color, marker=marker, linewidths=0, label=f"component {rank + 1}")
        dots.set_rasterized(True)  # or loggers of vector graphics would store every point
    x, y = points[outliers].T.tolist()
    axes.scatter(x, y, s=70, facecolors="none", edgecolors="black", linewidths=1.0, label="outlier sample")
    count, value = int(outliers.sum()), layer.calinski_harabasz[index].item()
    outlier_count = f"{count} outlier{'s' * (count != 1)}"
    number = f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"
    mixture = f"K = {int(layer.n_components[index])}, CH = {number}"
    axes.set_title(f"{layer_text(name, 24)}\nfilter {index}: {mixture}, {outlier_count}", parse_math=False)
    axes.set(xlabel="first component (its std. dev.)", ylabel="second component (same unit)")
    axes.margins(0.12)
    for lower, upper, limit in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        if upper - lower < 1:  # a component that barely varies should look flat
            limit((lower + upper - 1) / 2, (lower + upper + 1) / 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="black", labelsize=8)  # set here, as ticks are made at rendering, in the user's style


def curves_figure(history: Sequence[Mapping[str, Any]], losses: Mapping[str, str]) -> Figure:
    """Draw losses on the left axis and counts of filters on the right axis, at every validation of a `history`."""
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
        # Validations are labeled with epochs, or with steps if an epoch has several.
        epochs = [entry["epoch"] for entry in history]
        unit = "epoch" if len(set(epochs)) == len(epochs) else "step"
        ticks = MaxNLocator(10, integer=True).tick_values(0, max(1, len(history) - 1))
        places = [int(tick) for tick in ticks if 0 <= tick < len(history)]
        left.set_xticks(places, [str(history[place][unit]) for place in places])
        left.set(xlim=(-0.5, len(history) - 0.5), xlabel=unit)
        for axes in (left, right):
            axes.spines["top"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
