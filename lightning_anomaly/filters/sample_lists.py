"""Lists of the samples of a probe for a page: by how odd they are, and by how many filters single them out."""

from __future__ import annotations

import os
from typing import Any

from lightning_anomaly.filters.agreement import most_singled_out
from lightning_anomaly.pages.gallery import Row, Tab
from lightning_anomaly.pages.html_page import finite_or_none, usual_score


def sample_lists(report: Any) -> list[Tab]:
    """Return the lists of an `AnomalyReport`."""
    odd = [_sample_row(report, sample) for sample in report.by_outlier_score if report.views]
    counts = most_singled_out(report.layers) if report.measured else {}
    found = [_sample_row(report, sample, f"singled out by {count} filters") for sample, count in counts.items()]
    about = "More filters isolate them, or have them in a rare cluster, than chance explains."
    return [
        Tab("strangest samples", "Samples", "Validation samples, the strangest first.", odd),
        Tab("singled out", "Singled out", about, found),
    ]


def sample_name(report: Any, sample: int) -> str:
    """Name a sample by its file, if that is known."""
    return f"sample {sample}" if report.names is None else report.names[sample]


def _sample_row(report: Any, sample: int, note: str = "") -> Row:
    reasons = report.outlier_reasons(sample)
    return Row(
        sample_name(report, sample),
        sample,
        "" if report.names is None else os.path.abspath(os.path.join(report.folder, report.names[sample])),
        label=("" if report.labels is None else report.labels[sample]) or "",
        score=finite_or_none(report.outlier_scores[sample].item()),
        reason="; ".join(reasons.values()),
        note=note,
        bars=[
            (name, view.scores[sample].item(), usual_score(view.scores), reasons.get(name, ""))
            for name, view in report.views.items()
        ],
        sample=sample,
    )
