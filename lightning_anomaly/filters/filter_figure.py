"""Scatter plots of the filters with the clearest anomalies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_anomaly.filters.layer_report import ANOMALY, LayerReport
from lightning_anomaly.pages.style import COMPONENT_COLOURS, layer_text, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 6
_MARKERS = "osD^v"  # the first goes with each colour, then the second, and so on
_OUTLIER = "outlier sample"
_ENTRY = 1.35  # width of an entry in the legend (inches)
_CLEAR = 7.0  # larger gaps count as equally clear (spreads of the other samples)


def clearest_filters(layers: Mapping[str, LayerReport], max_filters: int = 6) -> list[tuple[str, int]]:
    """Find the anomaly filters with the clearest outliers, as `(layer, filter)`, by descending gap.

    The gap is the mean distance of the outliers from the mean of the other samples, in units of the spread of the
    others (the root of their mean squared distance to it). Gaps above 7 count as equal, and the larger spread comes
    first: else filters that are silent except for their outliers, common in sparse layers, would fill the list.
    """
    clearness: dict[tuple[str, int], tuple[float, float]] = {}
    for name, layer in layers.items():
        anomalies = layer.filters(ANOMALY)
        values = _clearness(layer.points[anomalies].double(), layer.outliers[anomalies]) if anomalies else []
        clearness.update(zip([(name, index) for index in anomalies], values, strict=True))
    return sorted(clearness, key=clearness.__getitem__, reverse=True)[:max_filters]


def _clearness(points: Tensor, outliers: Tensor) -> list[tuple[float, float]]:
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

    A panel shows all probe samples on the filter's two principal components. Colours are components of the mixture (1
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
        entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        handles = {label: handle for panel in entries for handle, label in panel}
        labels = sorted(handles, key=lambda label: (label == _OUTLIER, len(label), label))
        ncols = math.ceil(len(labels) / math.ceil(len(labels) * _ENTRY / width))
        markers = [handles[label] for label in labels]
        figure.legend(markers, labels, loc="outside lower center", ncols=ncols, handlelength=1, columnspacing=1.2)
    return figure


def _draw_filter(axes: Axes, name: str, layer: LayerReport, index: int) -> None:
    points, labels, outliers = layer.points[index], layer.labels[index], layer.outliers[index]
    counts = labels.bincount()
    components = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
    size = min(16.0, max(3.0, 6000 / len(points)))  # square points
    for rank, component in enumerate(components):
        x, y = points[labels == component].T.tolist()
        turn, place = divmod(rank, len(COMPONENT_COLOURS))
        colour, marker = COMPONENT_COLOURS[place], _MARKERS[turn % len(_MARKERS)]
        dots = axes.scatter(x, y, s=size, c=colour, marker=marker, linewidths=0, label=f"component {rank + 1}")
        dots.set_rasterized(True)  # or loggers of vector graphics would store every point
    x, y = points[outliers].T.tolist()
    axes.scatter(x, y, s=70, facecolors="none", edgecolors="black", linewidths=1.0, label=_OUTLIER)
    axes.set_title(f"{layer_text(name, 24)}\nfilter {index}: {_verdict_text(layer, index)}", parse_math=False)
    axes.set(xlabel="first component (its std. dev.)", ylabel="second component (same unit)")
    axes.margins(0.12)
    for lower, upper, limit in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        if upper - lower < 1:  # a component that barely varies should look flat
            limit((lower + upper - 1) / 2, (lower + upper + 1) / 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="black", labelsize=8)  # set here, as ticks are made at rendering, in the user's style


def _verdict_text(layer: LayerReport, index: int) -> str:
    count, value = len(layer.outliers_of(index)), layer.calinski_harabasz[index].item()
    number = f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"
    return f"K = {int(layer.n_components[index])}, CH = {number}, {count} outlier{'s' * (count != 1)}"
