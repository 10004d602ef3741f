"""See what the filters of a CNN single out while it trains, and which labels and images are wrong, with Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.5.0"

__all__ = [
    "AnalysisSettings",
    "AnomalyEarlyStopping",
    "AnomalyFilterCallback",
    "AnomalyPruneCallback",
    "AnomalyReport",
    "LayerComparison",
    "LayerReport",
    "MemorizationCallback",
    "MemorizationEarlyStopping",
    "MemorizationReport",
    "OutlierDetector",
    "OutlierReport",
    "analyze",
    "filter_figure",
    "find_outliers",
    "outlier_figure",
    "save_run_page",
    "two_sample_test",
]

if TYPE_CHECKING:
    from lightning_anomaly.callbacks import (
        AnomalyEarlyStopping,
        AnomalyFilterCallback,
        AnomalyPruneCallback,
        MemorizationCallback,
        MemorizationEarlyStopping,
        save_run_page,
    )
    from lightning_anomaly.filters.analyze import analyze
    from lightning_anomaly.filters.anomaly_report import AnomalyReport
    from lightning_anomaly.filters.filter_figures import filter_figure
    from lightning_anomaly.filters.layer_report import LayerReport
    from lightning_anomaly.filters.settings import AnalysisSettings
    from lightning_anomaly.memorization import LayerComparison, MemorizationReport, two_sample_test
    from lightning_anomaly.outliers import OutlierDetector, OutlierReport, find_outliers
    from lightning_anomaly.pages.figures import outlier_figure
else:

    def __getattr__(name: str) -> object:
        """Import all of the above at the first use of any, so that `lightning-anomaly --help` need not import torch."""
        if not name.startswith("_"):
            figures = "filters.filter_figures", "pages.figures"
            for module in ("callbacks", "filters.analyze", *figures, "outliers", "memorization"):
                found = vars(import_module(f"{__name__}.{module}"))
                globals().update({public: found[public] for public in __all__ if public in found})
        if name not in globals():
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return globals()[name]
