"""The figures of a report that loggers and the command line draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_anomaly.plots import filter_figure, outlier_figure, verdict_map
from lightning_anomaly.report.anomaly_report import AnomalyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By name, each drawn from a report and the images of its probe, None if there are none.
FIGURES: Mapping[str, Callable[[AnomalyReport, Tensor | None], Figure | None]] = {
    "verdicts": lambda report, _: verdict_map(report.layers),
    "filters": lambda report, _: filter_figure(report.layers),
    "outliers": lambda report, images: (
        None
        if images is None or len(images) != report.n_samples  # as for patches or frames
        else outlier_figure(images, report.outlier_scores, report.outlier_samples)
    ),
}
