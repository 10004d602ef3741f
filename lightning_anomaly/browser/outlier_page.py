"""The page of an `OutlierReport`: a ranked gallery to tick images in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_anomaly.browser.page import assemble, plain_labels, write
from lightning_anomaly.browser.report_page import usual_score
from lightning_anomaly.images.thumbnails import KEPT

if TYPE_CHECKING:
    from lightning_anomaly.outliers.report import OutlierReport

_CODE = "dom unpack wording csv colours canvas components ranking shell gallery"


def write_outlier_page(
    report: OutlierReport,
    path: str | Path,
    sentences: Sequence[str],
    labels: Sequence[Any] | None,
    title: str,
) -> None:
    """Write the images with the largest scores as an HTML file, see `OutlierReport.save_html`."""
    named = None if labels is None else plain_labels(labels, len(report.scores))
    rows = report.rows(KEPT)
    # A browser stores ticks under this key, which depends on the ranking and not on the names of the images.
    ranking = [[row["position"], row["score"]] for row in rows]
    key = hashlib.sha256(json.dumps(ranking).encode()).hexdigest()[:16]
    above = {*report.above_calibration}
    columns = list(rows[0]) + ["label"] * (named is not None)
    for row in rows:
        position = row["position"]
        row["score"] = _finite(row["score"])
        if named is not None:
            row["label"] = str(named[position])
        row["views"] = {view: _finite(scores[position].item()) for view, scores in report.view_scores.items()}
        row["told"] = report.outlier_reasons(position)
        row["above"] = position in above
    images = None if report.images is None else report.images[: len(rows)]
    index = {
        "title": title,
        "sentences": list(sentences),
        "layers": report.layers,
        "columns": columns,
        "rate": report.false_discovery_rate,
        "ranked": not report.n_calibration,  # p-values only rank the images
        "total": len(report.scores),
        "ordinary": usual_score(report.scores),
        "views": {view: usual_score(scores) for view, scores in report.view_scores.items()},
        "pictured": 0 if images is None else len(images),
        "rows": rows,
        "key": key,
    }
    write(path, assemble(_CODE, index, images))


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
