"""What all figures share, and the figure of outlier samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinct for color-blind readers; the largest component gets the first. The filter browser
# has its colors in `colors.js`.
COMPONENT_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_IMAGES = 16
_STYLE = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "figure.dpi": 100}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Make a figure (inches); within the `with` block, the user's matplotlib style does not apply."""
    import matplotlib.style

    from lightning_anomaly.pages.notebook_figure import NotebookFigure

    with matplotlib.style.context(["default", _STYLE]):
        yield NotebookFigure(figsize=(width, height), layout="constrained")


def layer_text(name: str, length: int) -> str:
    """Return `layer NAME`, or `the model` for a model that is one layer; cut at the left, where names are alike."""
    short = name if len(name) <= length else "…" + name[1 - length :]
    return f"layer {short}" if name else "the model"


def outlier_figure(images: Tensor, scores: Tensor, votes: Sequence[int]) -> Figure | None:
    """Draw the images of up to 16 samples with the largest outlier scores; at equal scores more votes come first.

    Args:
        images: `AnomalyReport.images` `(N, H, W, C)`.
        scores: `AnomalyReport.outlier_scores` `(N,)`.
        votes: `AnomalyReport.votes`, N numbers.

    Returns:
        The figure; None if no sample has a positive score or a vote.
    """
    values = scores.tolist()
    ranked = sorted(range(len(values)), key=lambda sample: (-values[sample], -votes[sample]))
    chosen = [sample for sample in ranked if values[sample] > 0 or votes[sample]][:_IMAGES]
    if not chosen:
        return None
    captions = [f"sample {sample}\nscore {values[sample]:.1f}" for sample in chosen]
    columns = min(8, len(chosen), max(4, math.ceil(math.sqrt(len(chosen)))))
    rows = math.ceil(len(chosen) / columns)
    with new_figure(max(5.0, 1.5 * columns), 2.0 * rows + 0.8) as figure:
        for place, (image, caption) in enumerate(zip(images[chosen], captions, strict=True)):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.imshow(image.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(caption)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="#B0B0B0", linewidth=0.6)  # white images need a frame
        figure.suptitle(f"Samples with the largest outlier scores: {len(chosen)} of {len(values)}", fontsize=10)
    return figure
