"""Pictures of a report: the clearest anomalies, the outlier samples' images, a map of all filters; and of comparisons.

Every function returns a `matplotlib.figure.Figure`, or None where there is nothing to show. pyplot is not used, so no
window opens, and the user's matplotlib settings are neither changed nor used.
"""

from __future__ import annotations

from lightning_anomaly.plots.comparisons import comparison_figure
from lightning_anomaly.plots.curves import curves_figure
from lightning_anomaly.plots.filters import clearest_filters, filter_figure, layer_figure, scatter_figure
from lightning_anomaly.plots.samples import draw_outliers, outlier_figure, outlier_images
from lightning_anomaly.plots.verdicts import verdict_map

__all__ = [
    "clearest_filters",
    "comparison_figure",
    "curves_figure",
    "draw_outliers",
    "filter_figure",
    "layer_figure",
    "outlier_figure",
    "outlier_images",
    "scatter_figure",
    "verdict_map",
]
