"""Pages as single HTML files with their style, code and data, which load nothing and which a notebook shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LOSSLESS = 128  # longest side of a picture that is stored as it is (pixels)
_FRAME = "box-sizing:border-box;width:100%;height:760px;border:1px solid #8884;border-radius:8px"


@dataclass(frozen=True, repr=False)
class BrowserFile:
    """A page in a file: a notebook shows the page, a console its path."""

    path: Path

    def __repr__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # Contains the page, as a notebook's server does not serve the file, and as the notebook may be sent elsewhere.
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe title="Browser of a report" style="{_FRAME}" srcdoc="{page}"></iframe>'


def write_page(path: str | Path, text: str) -> BrowserFile:
    """Write a page, creating missing folders."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may not be UTF-8
    return BrowserFile(Path(path))


def finite_or_none(value: float) -> float | None:
    """Replace infinite numbers and NaN, which JSON does not have, by None."""
    return value if math.isfinite(value) else None


def four_digits(value: float) -> float | None:
    """Round to four digits; None for infinite numbers and NaN."""
    return finite_or_none(float(f"{value:.4g}"))


def usual_score(scores: Tensor) -> float:
    """Return the 0.95 quantile of the finite scores; 0 without any."""
    usual = scores[scores.isfinite()].double()
    return four_digits(usual.quantile(0.95).item()) or 0.0 if len(usual) else 0.0


def assemble_page(
    code: str, index: Mapping[str, Any], images: Tensor | None = None, blocks: Mapping[str, bytes] | None = None
) -> str:
    """Return the text of a page, which reads the `index` at once and unpacks `blocks` when it needs them.

    `code` names JavaScript files in the order of their imports, with different top-level names. Images, uint8 `(N,
    height, width, channels)` with one or three channels, become one PNG file.
    """
    placed, sprite = (None, {}) if images is None else _image_sheet(images)
    plain = json.dumps({**index, "images": placed}, separators=(",", ":"), allow_nan=False).encode()
    content = {name: zlib.compress(block) for name, block in {"index": plain, **(blocks or {})}.items()} | sprite
    joined = "\n".join(_page_file(f"{name}.js") for name in code.split())
    module = re.sub(r"^(export |import [^;]*;\n)", "", joined, flags=re.MULTILINE)  # of each other
    style = _page_file("page.css")
    parts = {
        "TITLE": escape(index["title"]),
        "CODE_HASH": _policy_hash(module),
        "STYLE_HASH": _policy_hash(style),
        "STYLE": style,
        "DATA": "\n".join(
            f'<script type="text/plain" id="{name}">{base64.b64encode(block).decode()}</script>'
            for name, block in content.items()
        ),
        "CODE": module,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _page_file("page.html"))


def _image_sheet(images: Tensor) -> tuple[dict[str, int], dict[str, bytes]]:
    """Put all images into one PNG file, row by row; return their size and the columns, and the file."""
    from PIL import Image

    count, height, width, channels = images.shape
    columns = max(1, min(count, round(math.sqrt(count * height / width))))
    padded = torch.cat([images, images.new_zeros(-count % columns, height, width, channels)])
    sheet = padded.reshape(-1, columns, height, width, channels).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(2).numpy()).save(file, format="png")
    return {"height": height, "width": width, "columns": columns}, {"sprite": file.getvalue()}


def _page_file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _policy_hash(text: str) -> str:
    """Hash a part for the page's content security policy, so that code in a name never runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(image: Tensor, side: int = 256) -> str:
    """Store an image, uint8 `(H, W, C)` with one or three channels, in an address, reduced to `side` pixels."""
    from PIL import Image

    picture, file = Image.fromarray(image.squeeze(2).numpy()), io.BytesIO()
    picture.thumbnail((side, side))
    kind = "png" if max(picture.size) <= _LOSSLESS else "jpeg"
    picture.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
