"""Lists of the samples of a probe for a page: by how odd they are, and by how many filters single them out."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.filters.agreement import by_filters
from lightning_anomaly.pages.gallery import Row, Tab
from lightning_anomaly.pages.html_page import finite, usual_score


def sample_lists(report: Any) -> list[Tab]:
    """Return the lists of an `AnomalyReport`."""
    odd = [_row(report, sample) for sample in report.by_outlier_score if report.views]
    counts = by_filters(report.layers) if report.measured else {}
    found = [_row(report, sample, f"singled out by {count} filters") for sample, count in counts.items()]
    about = "They are isolated or in a rare cluster of at least three times as many filters as a sample on average."
    return [
        Tab("strangest samples", "Samples", "Validation samples, the strangest first.", odd),
        Tab("singled out", "Singled out", about, found),
    ]


def name_of(report: Any, sample: int) -> str:
    """Name a sample by its file, if that is known."""
    return f"sample {sample}" if report.names is None else report.names[sample]


def _row(report: Any, sample: int, note: str = "") -> Row:
    reasons = report.outlier_reasons(sample)
    return Row(
        name_of(report, sample),
        sample,
        label=("" if report.labels is None else report.labels[sample]) or "",
        score=finite(report.outlier_scores[sample].item()),
        reason="; ".join(reasons.values()),
        note=note,
        bars=[
            (name, view.scores[sample].item(), usual_score(view.scores), reasons.get(name, ""))
            for name, view in report.views.items()
        ],
        sample=sample,
    )
