"""Pictures of a report: the clearest anomalies, the outlier samples' images, a map of all filters; and of comparisons.

Every function returns a `matplotlib.figure.Figure`, or None where there is nothing to show. pyplot is not used, so no
window opens, and the user's matplotlib settings are neither changed nor used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_anomaly.plots.comparisons import comparison_figure
from lightning_anomaly.plots.curves import curves_figure
from lightning_anomaly.plots.filters import clearest_filters, filter_figure, layer_figure, scatter_figure
from lightning_anomaly.plots.samples import draw_outliers, outlier_figure, outlier_images
from lightning_anomaly.plots.verdicts import verdict_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_anomaly.report import AnomalyReport

__all__ = [
    "FIGURES",
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

# What loggers and the command line draw, by name, each from a report and what `outlier_images` returned, None where
# there are no images.
FIGURES: Mapping[str, Callable[[AnomalyReport, Tensor | None], Figure | None]] = {
    "verdicts": lambda report, _: verdict_map(report),
    "filters": lambda report, _: filter_figure(report),
    "outliers": lambda report, shown: None if shown is None else draw_outliers(report, shown),
}
