"""The figure of what finds images that do not belong: how well, and a gallery with scores."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from statistics import mean

import torch
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from recipes.experiments.common.tables import Line, group
from recipes.experiments.outliers.detect import SCORES
from recipes.experiments.outliers.tables import ALL_KINDS, reported, values_of

__all__ = ["draw", "unpacked"]

_HEIGHT = 1.5  # of a gallery (inches)


def unpacked(line: Line) -> Tensor:
    """The images of a training's gallery, uint8 `(n, H, W, C)`."""
    strip = pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(line["gallery"]["png"]))))
    return torch.stack(strip.permute(1, 2, 0).chunk(len(line["gallery"]["kinds"]), 1))


def draw(lines: Sequence[Line]) -> Figure:
    """The mean AUROC of every score for each kind of damage, and galleries of one training in each network."""
    some = reported(lines)
    shown = [runs[0] for runs in group([line for line in some if line["gallery"]], "network").values()]
    figure = Figure(figsize=(13, 4.2 + _HEIGHT * len(shown)), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[4.2, _HEIGHT * max(1, len(shown))])
    _draw_areas(parts[0, 0], some)
    _draw_galleries(parts[1, 0], shown)
    return figure


def _draw_areas(figure: SubFigure, lines: Sequence[Line]) -> None:
    axes = figure.add_subplot()
    table = [[mean(found) if (found := values_of(lines, score, kind)) else float("nan") for kind in (*ALL_KINDS, None)]
             for score in SCORES]  # fmt: skip
    image = axes.imshow(table, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            colour = "black" if 0.15 < value < 0.85 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(ALL_KINDS) + 1), [*ALL_KINDS, "all"], fontsize=8)
    axes.set_yticks(range(len(SCORES)), ["outlier score", *SCORES[1:]], fontsize=8)
    axes.set_title(
        "Mean AUROC, over networks, data sets, conditions and shares that had no part in the choice", fontsize=10
    )
    figure.colorbar(image, ax=axes)


def _draw_galleries(figure: SubFigure, lines: Sequence[Line]) -> None:
    if not lines:
        return
    columns = max(len(line["gallery"]["kinds"]) for line in lines)
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for row, line in zip(grid, lines, strict=True):
        gallery, cell = line["gallery"], line["cell"]
        for axes in row:
            axes.axis("off")
        captions = zip(gallery["kinds"], gallery["scores"], gallery["ranks"], strict=True)
        for axes, image, (kind, score, rank) in zip(row, unpacked(line), captions, strict=False):
            axes.imshow(image.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{kind or 'not damaged'}\n{score:.0f}, rank {rank}", fontsize=8)
        row[0].text(-0.1, 0.5, f"{cell['network']}\n{cell['data']}", transform=row[0].transAxes, ha="right", fontsize=8)
    figure.suptitle(
        "Training images of networks that were trained on the damaged ones: of each kind the one with the median\n"
        "score, and the undamaged ones with the largest. Above each its score, and its rank among all training images",
        fontsize=10,
    )
