"""The page of an `AnomalyReport`: its filters and the samples of its probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_anomaly.browser.epochs import Frame
from lightning_anomaly.browser.pack import pack
from lightning_anomaly.browser.page import assemble, write
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import Pictures, check_images, probe_images

__all__ = ["page_text", "write_page"]

_CODE = ("dom.js", "unpack.js", "csv.js", "data.js", "words.js", "colours.js", "draw.js", "scatter.js", "parts.js",
         "overview.js", "filters.js", "filter.js", "samples.js", "shell.js", "main.js")  # fmt: skip


def write_page(
    report: AnomalyReport,
    path: str | Path,
    images: Tensor | None,
    labels: Sequence[Any] | None,
    title: str,
    history: Sequence[Mapping[str, Any]] | None,
    names: Sequence[str] | None = None,
) -> None:
    """Write a report as an HTML file, see `AnomalyReport.save_html`; samples are found by their `names` too."""
    if labels is not None and len(labels) != report.n_samples:
        raise ValueError(
            f"Parameter `labels` should have {report.n_samples} entries, one for each probe sample. "
            f"Found {len(labels)}."
        )
    pictures = report.pictures or Pictures(None, {})
    if images is not None:
        check_images(images, report.n_samples, (2, 3, 4, 5))
        pictures = Pictures(probe_images(images), pictures.maps)
    write(path, page_text(report, pictures, title, history, labels, names=names))


def page_text(
    report: AnomalyReport,
    pictures: Pictures,
    title: str,
    history: Sequence[Mapping[str, Any]] | None,
    labels: Sequence[Any] | None = None,
    frames: Sequence[Frame] = (),
    names: Sequence[str] | None = None,
) -> str:
    """Write a report as the text of an HTML page, with given pictures, points of earlier analyses and files."""
    index, blocks = pack(report, pictures, labels, title, history, frames, names)
    return assemble(_CODE, index, pictures.images, blocks)
