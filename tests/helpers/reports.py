"""Made-up layers of a report, with given verdicts and outliers, its values, and what pages and tables contain."""

import base64
import csv
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.filters.layer_report import LayerReport


def layer(*verdicts: str, outliers: Any = (), samples: int = 60, **values: Any) -> LayerReport:
    """Make a layer of filters with these verdicts and outliers `{filter: samples}`; `values` replace other fields."""
    filters, generator = len(verdicts), torch.Generator().manual_seed(len(verdicts))
    flagged = torch.zeros(filters, samples, dtype=torch.bool)
    for index, indices in dict(outliers).items():
        flagged[index, indices] = True
    fields = {
        "n_components": torch.full((filters,), 2),
        "calinski_harabasz": torch.rand(filters, generator=generator, dtype=torch.float64) * 1e3,
        "smallest_share": torch.full((filters,), 1 / 3, dtype=torch.float64),
        "clusters": flagged.to(torch.uint8),
        "points": torch.randn(filters, samples, 2, generator=generator),
        "outliers": flagged,
        "isolated": torch.zeros(filters, samples, dtype=torch.bool),
        "explained": torch.rand(filters, generator=generator, dtype=torch.float64),
        "sparsity": torch.full((filters,), 0.25, dtype=torch.float64),
        "map_size": (8, 8),
        "analyzed_size": (8, 8),
        "nonfinite": torch.zeros(samples, dtype=torch.bool),
    }
    return LayerReport(verdicts=verdicts, **(fields | values))


def facts(value: Any) -> Any:
    """Convert a report, or a part of one, to JSON values that can be compared: without images, NaN as a word."""
    if isinstance(value, Tensor):
        value = value.tolist()
    elif is_dataclass(value):
        names = [field.name for field in fields(value) if field.name not in ("images", "maps")]
        value = {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return {key: facts(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [facts(part) for part in value]
    return value if isinstance(value, (int, float)) and math.isfinite(value) else str(value)


def contents(page: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the index of a page, and its other blocks by name."""
    blocks = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)<', page)
    raw = {name: zlib.decompress(base64.b64decode(text)) for name, text in blocks if name != "sprite"}
    return json.loads(raw.pop("index")), raw


def page_rows(page: str) -> dict[str, list[dict[str, Any]]]:
    """Read the lists of a page: each row of a list with the cells of its sample."""
    index, _ = contents(page)
    columns = "score", "reason", "note", "group", "can_go", "sure"
    return {
        tab["name"]: [index["table"][number] | dict(zip(columns, entry, strict=True)) for number, *entry in tab["rows"]]
        for tab in index["tabs"]
    }


def table(file: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as opened:
        return [*csv.DictReader(opened)]
