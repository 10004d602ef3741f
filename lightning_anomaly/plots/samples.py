"""The images of the outlier samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_anomaly.checks import check_integer
from lightning_anomaly.plots.fields import ReportFields
from lightning_anomaly.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def outlier_figure(report: ReportFields, images: Tensor, max_images: int = 16) -> Figure | None:
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
    return draw_outliers(report, outlier_images(report, images, max_images))


def outlier_images(report: ReportFields, images: Tensor, max_images: int = 16) -> Tensor:
    """What `outlier_figure` shows: all that has to be kept of a probe to draw it later.

    Args:
        report: See `outlier_figure`, as for the arguments below.
        images: The probe's images `(N, C, H, W)`.
        max_images: Number of images at most.

    Returns:
        uint8 images `(n, H, W, C)` with one or three channels, on the CPU; `n` is 0 if no sample is an outlier.

    Raises:
        ValueError: If `images` does not hold one image for each probe sample.
    """
    check_integer("max_images", max_images, 1)
    if not isinstance(images, Tensor):
        raise ValueError(f"Parameter `images` should be a tensor (N, C, H, W). Found a {type(images).__name__}.")
    if images.ndim != 4 or len(images) != report.n_samples or 0 in images.shape[1:]:
        raise ValueError(
            f"Parameter `images` should be of shape ({report.n_samples}, C, H, W), one image for each probe sample. "
            f"Found shape {tuple(images.shape)}."
        )
    return displayed(images, _most_voted(report)[:max_images])


def draw_outliers(report: ReportFields, shown: Tensor) -> Figure | None:
    """Draw what `outlier_images` gave for the same report; None if that is nothing."""
    outliers, votes = _most_voted(report), report.outlier_samples
    chosen = outliers[: len(shown)]
    if not chosen:
        return None
    columns = min(8, len(chosen), max(4, math.ceil(math.sqrt(len(chosen)))))
    rows = math.ceil(len(chosen) / columns)
    with new_figure(max(5.0, 1.5 * columns), 1.8 * rows + 0.8) as figure:  # the heading needs as much
        for place, (sample, image) in enumerate(zip(chosen, shown, strict=True)):
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


def _most_voted(report: ReportFields) -> list[int]:
    """The outlier samples, those with most votes first."""
    votes = report.outlier_samples
    return sorted((sample for sample in range(len(votes)) if votes[sample]), key=lambda sample: -votes[sample])


def displayed(images: Tensor, chosen: Sequence[int]) -> Tensor:
    """The chosen images as uint8 `(n, H, W, C)` with one or three channels, scaled as `outlier_figure` says."""
    images = images.detach()
    if images.shape[1] != 3:
        images = images[:, :1]
    shown = images[list(chosen)].cpu()
    if images.dtype != torch.uint8:
        pixels = images.flatten(2)
        # Half a tenth of the images at either end may be out of the ordinary.
        low = pixels.amin(2).float().cpu().nanquantile(0.05, dim=0)[:, None, None]
        high = pixels.amax(2).float().cpu().nanquantile(0.95, dim=0)[:, None, None]
        scaled = (shown.float() - low) / (high - low).clamp_min(1e-12)
        shown = scaled.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1)
