"""Pictures of a report: the clearest anomalies, the outlier samples' images, a map of all filters.

Every function returns a `matplotlib.figure.Figure` that no window knows of, or None where there is nothing to show.
pyplot is not used, and matplotlib's settings, which may be the user's own, neither change nor matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_anomaly.report import ANOMALY, DEAD, NONFINITE, NORMAL, AnomalyReport, LayerReport
from lightning_anomaly.settings import check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["clearest_filters", "filter_figure", "outlier_figure", "verdict_map"]

# Okabe and Ito's colours, which colour-blind readers can tell apart; the largest component gets the first.
_COMPONENTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = "osD^v"  # one after another where there are more components than colours
# Told apart by lightness too: pale, strong, dark.
_VERDICTS = {NORMAL: "#C6DBEF", ANOMALY: "#D55E00", DEAD: "#4D4D4D", NONFINITE: "#F0E442"}
_STYLE = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "figure.dpi": 100}
_OUTLIER = "outlier sample"
_ENTRY = 1.35  # width of an entry of the legend of components (inches)
_CLEAR = 5.0  # a gap that nobody misses (spreads of the other samples)
_COMPARED = 100  # outliers of one filter whose distances are looked at: bounds the memory


def clearest_filters(report: AnomalyReport, max_filters: int = 6) -> list[tuple[str, int]]:
    """The anomaly filters whose outliers lie most clearly apart from the other samples.

    As an eye judges it, by the gap: the distance from an outlier to the nearest sample that is none, the median over
    the outliers, in units of the others' spread (the root of their mean squared distance to their mean). Long tails,
    where outliers follow close upon the others, come last. Gaps of more than 5 count as equally clear, and among those
    the filter whose other samples vary most comes first: else the list would be of filters that are silent but for
    their outliers, which are many in sparse layers, have infinite gaps and look all the same.

    Args:
        report: The report.
        max_filters: Number of filters to return at most.

    Returns:
        `(layer, filter)` pairs, the clearest first.
    """
    check_integer("max_filters", max_filters, 1)
    clearness = {
        (name, index): _clearness(layer.points[index].double(), layer.outliers[index])
        for name, layer in report.layers.items()
        for index in layer.filters(ANOMALY)
    }
    return sorted(clearness, key=clearness.__getitem__, reverse=True)[:max_filters]


def _clearness(points: Tensor, outliers: Tensor) -> tuple[float, float]:
    """The gap, at most `_CLEAR`, and the spread of the samples that are no outliers."""
    others = points[~outliers]
    if len(others) == 0:
        return 0.0, 0.0
    # Exact differences: the quick way by matrix products loses small gaps far from the origin.
    distances = torch.cdist(points[outliers][:_COMPARED], others, compute_mode="donot_use_mm_for_euclid_dist")
    spread = (others - others.mean(0)).square().sum(1).mean().sqrt()
    gap = distances.amin(1).median() / spread.clamp_min(1e-6)  # the others may be one and the same point
    return min(_CLEAR, gap.item()), spread.item()


def filter_figure(report: AnomalyReport, max_filters: int = 6) -> Figure | None:
    """Scatter plots of the filters with the clearest anomalies.

    A panel shows all probe samples of a filter on its two principal components, coloured by the component of the
    mixture (1 is the largest), with rings around the outlier samples.

    Args:
        report: The report.
        max_filters: Number of panels at most; `clearest_filters` says which come first.

    Returns:
        The figure; None if there is no anomaly filter.
    """
    chosen = clearest_filters(report, max_filters)
    if not chosen:
        return None
    columns = min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    width = max(5.5, 3.5 * columns)
    with _figure(width, 3.0 * rows + 0.9) as figure:
        for place, (name, index) in enumerate(chosen):
            _draw_filter(figure.add_subplot(rows, columns, place + 1), name, report.layers[name], index)
        figure.suptitle(f"Filters with the clearest anomalies: {len(chosen)} of {report.count}")
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        labels = sorted(handles, key=lambda label: (label == _OUTLIER, len(label), label))
        figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside lower center",
            ncols=math.ceil(len(labels) / math.ceil(len(labels) * _ENTRY / width)),
            handlelength=1,
            columnspacing=1.2,
        )
    return figure


def _draw_filter(axes: Axes, name: str, layer: LayerReport, index: int) -> None:
    points, labels, outliers = layer.points[index], layer.labels[index], layer.outliers[index]
    counts = labels.bincount()
    components = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
    size = min(16.0, max(3.0, 6000 / len(points)))  # square points
    for rank, component in enumerate(components):
        cluster = points[labels == component]
        axes.scatter(
            cluster[:, 0].tolist(),
            cluster[:, 1].tolist(),
            s=size,
            c=_COMPONENTS[rank % len(_COMPONENTS)],
            marker=_MARKERS[rank // len(_COMPONENTS) % len(_MARKERS)],
            linewidths=0,
            label=f"component {rank + 1}",
            rasterized=True,  # loggers that store vector graphics would store every point
        )
    marked = points[outliers]
    axes.scatter(
        marked[:, 0].tolist(),
        marked[:, 1].tolist(),
        s=70,
        facecolors="none",
        edgecolors="black",
        linewidths=1.0,
        label=_OUTLIER,
    )
    count = len(marked)
    axes.set_title(
        f"{_layer(name, 24)}\n"
        f"filter {index}: K = {int(layer.n_components[index])}, CH = {_number(layer.calinski_harabasz[index].item())}, "
        f"{count} outlier{'s' * (count != 1)}",
        parse_math=False,
    )
    axes.set_xlabel("first component (its std. dev.)")
    axes.set_ylabel("second component (same unit)")
    axes.margins(0.12)
    for lower, upper, limit in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        if upper - lower < 1:  # a component that hardly varies should look so
            limit((lower + upper - 1) / 2, (lower + upper + 1) / 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="black", labelsize=8)  # fixed here because ticks are made when the figure is rendered


def outlier_figure(report: AnomalyReport, images: Tensor, max_images: int = 16) -> Figure | None:
    """The images of the outlier samples, those with most votes first.

    A sample's votes are the anomaly filters that it is an outlier of; at equal votes the earlier sample comes first.

    Args:
        report: The report.
        images: The probe's images `(N, C, H, W)`. One or three channels are shown as they are, of other numbers only
            the first. uint8 is shown as it is. Anything else, normalised images above all, is scaled channel by
            channel so that the range of an ordinary image of the probe goes from black to white: this undoes a
            normalisation, and what is darker or brighter than ordinary images looks so. (Scaled one by one, a black
            image and an over-exposed one would look like any other.)
        max_images: Number of images to show at most.

    Returns:
        The figure, each image under the caption of its place in the probe and its votes; None if no sample is an
        outlier.

    Raises:
        ValueError: If `images` does not hold one image for each probe sample.
    """
    check_integer("max_images", max_images, 1)
    if images.ndim != 4 or len(images) != report.n_samples or 0 in images.shape[1:]:
        raise ValueError(
            f"Parameter `images` should be of shape ({report.n_samples}, C, H, W), one image for each probe sample. "
            f"Found shape {tuple(images.shape)}."
        )
    votes = report.outlier_samples
    outliers = sorted((sample for sample in range(len(votes)) if votes[sample]), key=lambda sample: -votes[sample])
    chosen = outliers[:max_images]
    if not chosen:
        return None
    columns = min(8, max(4, math.ceil(math.sqrt(len(chosen)))))
    rows = math.ceil(len(chosen) / columns)
    with _figure(1.5 * columns, 1.8 * rows + 0.8) as figure:
        for place, (sample, image) in enumerate(zip(chosen, _displayed(images, chosen), strict=True)):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.imshow(image.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"sample {sample}\n{votes[sample]} vote{'s' * (votes[sample] != 1)}")
            axes.axis("off")
        figure.suptitle(
            f"Outlier samples with most votes: {len(chosen)} of {len(outliers)}\n"
            f"(a vote is an anomaly filter that a sample is an outlier of)",
            fontsize=10,
        )
    return figure


def _displayed(images: Tensor, chosen: list[int]) -> Tensor:
    """The chosen images as uint8 `(n, H, W, C)` with one or three channels."""
    images = images.detach()
    if images.shape[1] != 3:
        images = images[:, :1]
    shown = images[chosen].cpu()
    if images.dtype != torch.uint8:
        pixels = images.flatten(2)
        # Half a tenth of the images at either end may be out of the ordinary.
        low = pixels.amin(2).float().cpu().nanquantile(0.05, dim=0)[:, None, None]
        high = pixels.amax(2).float().cpu().nanquantile(0.95, dim=0)[:, None, None]
        scaled = (shown.float() - low) / (high - low).clamp_min(1e-12)
        shown = scaled.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1)


_MAP_WIDTH = 6.4  # the cells (inches)
_LINE, _SPACE = 0.15, 0.07  # least height of a layer, a line of text, and the space below it (inches)
_SPARE = 5.0  # height that large layers may take beyond that, before cells get smaller (inches)
_TALLEST = 18.0  # (inches)
_ROWS = (32, 64, 128, 256)  # cells in a row; smaller ones would be hard to see


def verdict_map(report: AnomalyReport) -> Figure:
    """A map of all filters, one cell each, coloured by verdict: a block of rows for every layer.

    Cells get smaller with the number of filters, and names of layers are left out where there is no room for all, so
    that the picture stays within 10 x 20 inches.

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
    named = math.ceil(1 / shrink)  # every so manieth layer
    with _figure(9.6, max(heights[columns] * shrink, _LINE) + 1.1) as figure:
        axes = figure.add_subplot()
        top = 0.0
        for place, (name, layer) in enumerate(report.layers.items()):
            height = _block_height(len(layer.verdicts), columns) * shrink
            _draw_block(axes, layer, top, height, columns)
            if place % named == 0:
                text: dict[str, Any] = {"va": "center", "fontsize": 8, "parse_math": False}
                middle = top + min(height, _LINE) / 2
                axes.text(-0.1, middle, _layer(name, 30), ha="right", **text)
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
        return "No filters were analysed"
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
    codes[: len(layer.verdicts)] = [list(_VERDICTS).index(verdict) for verdict in layer.verdicts]
    axes.pcolormesh(
        np.linspace(0, _MAP_WIDTH, columns + 1),
        np.linspace(top, top + height, rows + 1),
        np.ma.masked_less(codes.reshape(rows, columns), 0),
        cmap=ListedColormap(list(_VERDICTS.values())),
        vmin=-0.5,
        vmax=len(_VERDICTS) - 0.5,
        edgecolors="white",
        linewidth=8 * _MAP_WIDTH / columns if height / rows > 0.04 else 0,
        antialiased=True,
    )


def _verdict_legend(figure: Figure, report: AnomalyReport) -> None:
    from matplotlib.patches import Patch

    counts = {verdict: sum(len(layer.filters(verdict)) for layer in report.layers.values()) for verdict in _VERDICTS}
    shown = [verdict for verdict in _VERDICTS if counts[verdict] or verdict != NONFINITE]
    patches = [Patch(facecolor=_VERDICTS[verdict], label=f"{verdict}: {counts[verdict]}") for verdict in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(shown))


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure that looks the same whatever the user's matplotlib style is, while it is filled (inches)."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        yield Figure(figsize=(width, height), layout="constrained")


def _layer(name: str, length: int) -> str:
    """A layer's name, cut at the left, where names resemble each other."""
    if not name:
        return "the model"
    return "layer " + (name if len(name) <= length else "…" + name[1 - length :])


def _number(value: float) -> str:
    """A few digits of a number of any size."""
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"
