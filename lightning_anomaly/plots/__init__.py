"""Figures of filters, outlier samples, verdicts, two-sample comparisons and curves over a run.

The argument `layers` is `AnomalyReport.layers`. Functions return a `matplotlib.figure.Figure`, or None where there is
nothing to show. They do not use pyplot, so no window opens, nor do they use or change the user's matplotlib settings.
"""

from __future__ import annotations

from lightning_anomaly.plots.comparisons import comparison_figure
from lightning_anomaly.plots.curves import curves_figure
from lightning_anomaly.plots.filters import clearest_filters, filter_figure
from lightning_anomaly.plots.samples import outlier_figure
from lightning_anomaly.plots.verdicts import verdict_map

__all__ = [
    "clearest_filters",
    "comparison_figure",
    "curves_figure",
    "filter_figure",
    "outlier_figure",
    "verdict_map",
]
