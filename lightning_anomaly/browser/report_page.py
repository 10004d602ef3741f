"""The page of an `AnomalyReport`: its filters and the samples of its probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_anomaly.browser.epochs import Frame
from lightning_anomaly.browser.pack import pack
from lightning_anomaly.browser.page import assemble
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import Pictures, check_images, probe_images

_CODE = ("dom.js", "unpack.js", "csv.js", "data.js", "words.js", "colours.js", "draw.js", "scatter.js", "parts.js",
         "overview.js", "filters.js", "filter.js", "samples.js", "shell.js", "main.js")  # fmt: skip


def page_text(
    report: AnomalyReport,
    title: str,
    *,
    images: Tensor | None = None,
    labels: Sequence[Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
    frames: Sequence[Frame] = (),
) -> str:
    """Write a report as the text of an HTML page, see `AnomalyReport.save_html`.

    Samples are found by their `names` too; `frames` are the points of earlier analyses.
    """
    pictures = report.pictures or Pictures(None, {})
    if images is not None:
        check_images(images, report.n_samples, (2, 3, 4, 5))
        pictures = Pictures(probe_images(images), pictures.maps)
    index, blocks = pack(report, pictures, labels, title, history, frames, names)
    return assemble(_CODE, index, pictures.images, blocks)
