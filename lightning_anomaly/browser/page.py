"""The page: template, style, code and data in one file that refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_anomaly.browser.fields import BrowsedReport
from lightning_anomaly.browser.pack import index_bytes, pack
from lightning_anomaly.browser.pictures import Pictures, probe_images

__all__ = ["page_text", "write_page"]

# In the order of their imports. In the page they are one module, so no two of them have a name in common.
_CODE = ("dom.js", "data.js", "words.js", "draw.js", "scatter.js", "parts.js", "overview.js", "filters.js", "filter.js",
         "samples.js", "main.js")  # fmt: skip


def write_page(
    report: BrowsedReport,
    path: str | Path,
    images: Tensor | None = None,
    labels: Sequence[Any] | None = None,
    title: str = "Anomaly filters",
    history: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write a report as an HTML file, see `AnomalyReport.save_html`."""
    if labels is not None and len(labels) != report.n_samples:
        raise ValueError(
            f"Parameter `labels` should have {report.n_samples} entries, one for each probe sample. "
            f"Found {len(labels)}."
        )
    if images is not None and not (2 <= images.ndim <= 5 and len(images) == report.n_samples and images.numel()):
        raise ValueError(
            f"Parameter `images` should be of shape ({report.n_samples}, ...), one image, signal or volume for each "
            f"probe sample. Found shape {tuple(images.shape)}."
        )
    pictures = report.pictures or Pictures(None, {})
    if images is not None:
        pictures = Pictures(probe_images(images), pictures.maps)
    Path(path).write_text(page_text(report, pictures, labels, title, history), encoding="utf-8")


def page_text(
    report: BrowsedReport,
    pictures: Pictures,
    labels: Sequence[Any] | None = None,
    title: str = "Anomaly filters",
    history: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """A report as an HTML page, with given pictures."""
    packed = pack(report, pictures, labels, title, history)
    blocks = {"index": index_bytes(packed.index), **packed.blocks}
    if packed.sprite is not None:
        blocks["sprite"] = packed.sprite
    code, style = _code(), _text("page.css")
    parts = {
        "TITLE": escape(title),
        "CODE_HASH": _hash(code),
        "STYLE_HASH": _hash(style),
        "STYLE": style,
        "DATA": "\n".join(
            f'<script type="text/plain" id="{name}">{base64.b64encode(content).decode()}</script>'
            for name, content in blocks.items()
        ),
        "CODE": code,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("page.html"))


def _code() -> str:
    """The modules as one: they import only from each other."""
    text = "\n".join(_text(name) for name in _CODE)
    return re.sub(r"^export ", "", re.sub(r"^import [^;]*;\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def _text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's policy knows its own code by: no other runs, should a name ever be taken for HTML."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
