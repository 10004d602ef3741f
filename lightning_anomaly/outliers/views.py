"""The views of a sample beside that of the filters, see `outliers/scores.py`."""

from __future__ import annotations

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.classes import ClassView
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.pixels import PixelView


def fit_views(samples: SampleStatistics) -> dict[str, PixelView | ClassView]:
    """Fit each view that the samples have; one that cannot be fitted is left out."""
    fitted = {"pixels": PixelView.fit(samples), "classes": ClassView.fit(samples)}
    return {name: view for name, view in fitted.items() if view is not None}


def view_samples(samples: SampleStatistics) -> dict[str, SampleView]:
    """View samples among themselves."""
    return {name: view.view(samples) for name, view in fit_views(samples).items()}
