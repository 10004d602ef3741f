"""Made-up layers of a report, with given verdicts and outliers, and the contents of its page."""

import base64
import json
import re
import zlib
from typing import Any

import torch

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
        "labels": flagged.to(torch.uint8),
        "points": torch.randn(filters, samples, 2, generator=generator),
        "outliers": flagged,
        "isolated": torch.zeros(filters, samples, dtype=torch.bool),
        "explained": torch.rand(filters, generator=generator, dtype=torch.float64),
        "sparsity": torch.full((filters,), 0.25, dtype=torch.float64),
        "map_size": (8, 8),
        "analyzed_size": (8, 8),
        "nonfinite": torch.zeros(samples, dtype=torch.bool),
        "fingerprints": torch.arange(filters),
    }
    return LayerReport(verdicts=verdicts, **(fields | values))


def contents(page: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the index of a page, and its other blocks by name."""
    blocks = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)<', page)
    raw = {name: zlib.decompress(base64.b64decode(text)) for name, text in blocks if name != "sprite"}
    return json.loads(raw.pop("index")), raw
