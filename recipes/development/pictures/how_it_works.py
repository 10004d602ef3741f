"""The method in one picture, for a network trained on digits: `python -m recipes.development.pictures.how_it_works`.

Feature maps of one filter, their first two principal components, the clusters of a mixture, and the verdicts on all
filters. Two validation images are over-exposed, as outliers to find.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from lightning_anomaly import AnomalyReport, analyze
from lightning_anomaly.filters.filter_figures import VERDICT_COLORS, clearest_filters
from lightning_anomaly.filters.layer_report import LayerReport
from lightning_anomaly.pages.figures import COMPONENT_COLORS
from recipes.common.data import load_images, make_loaders, mean_and_std, normalize, split
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import SILENT, one_sentence_errors, quiet

DAMAGED = [3, 20]
_LETTERS = 15  # size of the titles (points)
_COLUMNS = 16  # cells in a row of the last panel


def trained_network_and_probe(epochs: int) -> tuple[torch.nn.Sequential, Tensor]:
    """Train a simple CNN on 200 digits; return it and a probe of 512 others, two of which are over-exposed."""
    quiet()
    pl.seed_everything(0, verbose=False)
    data = split(load_images("digits"), 200, 512, seed=0)
    network = build("simple_cnn", data.channels, data.n_classes)
    trainer = pl.Trainer(max_epochs=epochs, num_sanity_val_steps=0, **SILENT)
    trainer.fit(Classifier(network), *make_loaders(data, batch_size=32))
    mean, std = mean_and_std(data.train_images)
    probe = normalize(data.val_images, mean, std)
    probe[DAMAGED] = normalize(4 * data.val_images[DAMAGED].float(), mean, std)  # brighter than 8 bits can be
    return network.cpu().eval(), probe


def draw(maps: Tensor, report: AnomalyReport, name: str, index: int) -> Figure:
    """Draw the four steps for filter `index` of a layer with maps `(N, F, H, W)`."""
    layer = report.layers[name]
    figure = Figure(figsize=(7.2, 7.2), layout="constrained")  # square, with letters that are large enough on a phone
    panels = figure.subplots(2, 2).flatten()
    _draw_maps(panels[0], maps[:, index], layer.outliers[index])
    points, outliers = layer.points[index], layer.outliers[index]
    panels[1].scatter(*points.T.numpy(), s=14, color="#555555")
    panels[1].set_title("2  two principal components", fontsize=_LETTERS)
    for cluster in range(int(layer.n_components[index])):
        members = points[layer.clusters[index] == cluster]
        panels[2].scatter(*members.T.numpy(), s=14, color=COMPONENT_COLORS[cluster])
    panels[2].scatter(*points[outliers].T.numpy(), s=140, facecolors="none", edgecolors="black")
    rare = int(outliers.sum())
    panels[2].set_title(f"3  a mixture: {rare} outlier samples", fontsize=_LETTERS)
    for axes in panels[1:3]:
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("first component", fontsize=_LETTERS)
        axes.set_ylabel("second component", fontsize=_LETTERS)
    _draw_verdicts(panels[3], report.layers)
    panels[3].set_title(f"4  all filters: {report.count} anomalies", fontsize=_LETTERS)
    return figure


def _draw_maps(axes: Axes, maps: Tensor, outliers: Tensor) -> None:
    """Draw the maps `(N, H, W)` of up to four outlier samples and of the first others in a grid of 16."""
    shown = [*outliers.nonzero()[:, 0].tolist()[:4], *(~outliers).nonzero()[:, 0].tolist()][:16]
    framed = torch.nn.functional.pad(maps[shown], (0, 1, 0, 1), value=float("nan"))
    height, width = framed.shape[1:]
    grid = framed.reshape(4, 4, height, width).transpose(1, 2).reshape(4 * height, 4 * width)
    axes.imshow(grid[:-1, :-1].numpy(), cmap="magma", vmax=float(maps.quantile(0.999)))
    axes.spines[:].set_visible(False)
    for place in range(min(4, int(outliers.sum()))):
        axes.add_patch(Rectangle((place * width - 0.5, -0.5), width - 1, height - 1, fill=False, edgecolor="red", lw=2))
    axes.set(xticks=[], yticks=[])
    axes.set_title("1  a filter's maps of 16 images", fontsize=_LETTERS)


def _draw_verdicts(axes: Axes, layers: Mapping[str, LayerReport]) -> None:
    """Draw a block of rows for each layer, with a cell for each filter."""
    verdicts = list(VERDICT_COLORS)
    blank = [float("nan")] * _COLUMNS
    rows, middles = list[list[float]](), list[float]()
    for layer in layers.values():
        codes = [float(verdicts.index(verdict)) for verdict in layer.verdicts]
        block = [(codes[first : first + _COLUMNS] + blank)[:_COLUMNS] for first in range(0, len(codes), _COLUMNS)]
        middles.append(len(rows) + len(block) / 2)
        rows += [*block, blank]
    colors: dict[str, Any] = {"cmap": ListedColormap([*VERDICT_COLORS.values()]), "clim": (-0.5, len(verdicts) - 0.5)}
    axes.pcolormesh(torch.tensor(rows[:-1]).numpy(), edgecolors="w", linewidth=1, **colors)
    axes.set(xticks=[], aspect="equal")
    axes.set_yticks(middles, [f"layer {name}" for name in layers], fontsize=_LETTERS - 2)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    shown = [verdict for verdict in verdicts if any(layer.filters(verdict) for layer in layers.values())]
    patches = [Patch(facecolor=VERDICT_COLORS[verdict], label=verdict) for verdict in shown]
    style: dict[str, Any] = {"frameon": False, "fontsize": _LETTERS - 2, "handlelength": 1, "columnspacing": 1}
    axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(shown), **style)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    picture = "docs/pictures/how_it_works.png"
    parser.add_argument("--picture", default=picture, help="where the PNG file goes, default: %(default)s")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> AnomalyReport:
    """Train, analyze, draw."""
    network, probe = trained_network_and_probe(options.epochs)
    report = analyze(network, probe)
    ((name, index),) = clearest_filters(report.layers, 1)
    with torch.no_grad():
        maps = network[: int(name) + 1](probe).relu()
    Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
    draw(maps, report, name, index).savefig(options.picture, dpi=90)
    return report


if __name__ == "__main__":
    one_sentence_errors(run, parse)
