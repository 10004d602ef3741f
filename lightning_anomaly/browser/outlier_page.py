"""The page of an `OutlierReport`: a ranked gallery to tick images in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_anomaly.browser.page import assemble, plain_labels, write
from lightning_anomaly.browser.report_page import usual_score
from lightning_anomaly.outliers.report import KEPT, OutlierReport

_CODE = "dom unpack csv wording colours canvas components ranking shell gallery"


def write_outlier_page(
    report: OutlierReport,
    path: str | Path,
    sentences: Sequence[str],
    labels: Sequence[Any] | None,
    title: str,
) -> None:
    """Write the images with the largest scores as an HTML file, see `OutlierReport.save_html`."""
    names = None if labels is None else plain_labels(labels, len(report.scores))
    rows = report.rows(KEPT)
    # By which a browser keeps what was ticked: the same for the same ranking, whatever its images are called.
    key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    beyond = {*report.beyond}
    for row in rows:
        position = row["position"]
        row["score"] = _finite(row["score"])
        if names is not None:
            row["label"] = str(names[position])
        row["views"] = {view: _finite(own[position].item()) for view, own in report.view_scores.items()}
        row["told"] = report.outlier_reasons(position)
        row["beyond"] = position in beyond
    images = None if report.images is None else report.images[: len(rows)]
    index = {
        "title": title,
        "sentences": list(sentences),
        "layers": report.layers,
        "rate": report.false_discovery_rate,
        "total": len(report.scores),
        "ordinary": usual_score(report.scores),
        "views": {view: usual_score(own) for view, own in report.view_scores.items()},
        "pictured": 0 if images is None else len(images),
        "rows": rows,
        "key": key,
    }
    write(path, assemble(_CODE, index, images))


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
