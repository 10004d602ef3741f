"""The page of an `OutlierReport`: a ranked gallery in which a reader ticks images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_anomaly._internal.checks import check_labels
from lightning_anomaly.pages.page import assemble, finite, usual_score, write

_CODE = "dom unpack wording csv colors canvas components ranking shell gallery"


def write_outlier_page(
    path: str | Path,
    facts: Mapping[str, Any],
    rows: list[dict[str, Any]],
    scores: Tensor,
    view_scores: Mapping[str, Tensor],
    images: Tensor | None,
    labels: Sequence[Any] | None,
) -> None:
    """Write the images in `rows` as an HTML file, with the facts of `OutlierReport.save_html`."""
    named = None if labels is None else check_labels(labels, len(scores))
    # A browser stores ticks under this key, which depends on the ranking but not on names.
    ranking = [[row["position"], finite(row["score"])] for row in rows]
    key = hashlib.sha256(json.dumps(ranking).encode()).hexdigest()[:16]
    for row in rows:
        position = row["position"]
        row.update({name: finite(value) for name, value in row.items() if isinstance(value, float)})
        if named is not None:
            row["label"] = str(named[position])
        known = {view: values[position].item() for view, values in view_scores.items()}
        row["views"] = {view: finite(value) for view, value in known.items() if not math.isnan(value)}
    index = {
        **facts,
        "columns": [*dict.fromkeys([*facts["columns"], *([] if named is None else ["label"])])],
        "total": len(scores),
        "ordinary": usual_score(scores),
        "views": {view: usual_score(values) for view, values in view_scores.items()},
        "rows": rows,
        "key": key,
    }
    write(path, assemble(_CODE, index, images))
