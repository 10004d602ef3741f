"""The page of an `OutlierReport`: a ranked gallery to tick images in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_anomaly.browser.page import assemble, plain_labels, write
from lightning_anomaly.browser.report_page import usual_score

_CODE = "dom unpack wording csv colours canvas components ranking shell gallery"


def write_outlier_page(
    path: str | Path,
    facts: Mapping[str, Any],
    rows: list[dict[str, Any]],
    scores: Tensor,
    view_scores: Mapping[str, Tensor],
    images: Tensor | None,
    labels: Sequence[Any] | None,
) -> None:
    """Write a gallery of the images in `rows` as an HTML file, see `OutlierReport.save_html`, which gives the facts."""
    named = None if labels is None else plain_labels(labels, len(scores))
    # A browser stores ticks under this key, which depends on the ranking and not on the names of the images.
    ranking = [[row["position"], row["score"]] for row in rows]
    key = hashlib.sha256(json.dumps(ranking).encode()).hexdigest()[:16]
    for row in rows:
        position = row["position"]
        row["score"] = _finite(row["score"])
        if named is not None:
            row["label"] = str(named[position])
        row["views"] = {view: _finite(values[position].item()) for view, values in view_scores.items()}
    images = None if images is None else images[: len(rows)]
    index = {
        **facts,
        "columns": facts["columns"] + ["label"] * (named is not None),
        "total": len(scores),
        "ordinary": usual_score(scores),
        "views": {view: usual_score(values) for view, values in view_scores.items()},
        "pictured": 0 if images is None else len(images),
        "rows": rows,
        "key": key,
    }
    write(path, assemble(_CODE, index, images))


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
