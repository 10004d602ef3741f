"""Pictures of a report: the clearest anomalies, the outlier samples' images, a map of all filters.

Every function returns a `matplotlib.figure.Figure` that no window knows of, or None where there is nothing to show.
pyplot is not used, and matplotlib's settings, which may be the user's own, neither change nor matter.
"""

from lightning_anomaly.plots.filters import clearest_filters, filter_figure, layer_figure, scatter_figure
from lightning_anomaly.plots.samples import draw_outliers, outlier_figure, outlier_images
from lightning_anomaly.plots.verdicts import verdict_map

__all__ = [
    "clearest_filters",
    "draw_outliers",
    "filter_figure",
    "layer_figure",
    "outlier_figure",
    "outlier_images",
    "scatter_figure",
    "verdict_map",
]
