"""See what the filters of a convolutional network single out, as Lightning callbacks."""

from lightning_anomaly.callbacks import (
    AnomalyEarlyStopping,
    AnomalyFilterCallback,
    AnomalyPruneCallback,
    TwoSampleCallback,
    TwoSampleEarlyStopping,
)
from lightning_anomaly.filters.analyze import analyze
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.filters.settings import AnalysisSettings
from lightning_anomaly.outliers import OutlierDetector, OutlierReport, find_outliers
from lightning_anomaly.two_sample import TwoSampleReport, two_sample_test

__version__ = "0.3.0"

__all__ = [
    "AnalysisSettings",
    "AnomalyEarlyStopping",
    "AnomalyFilterCallback",
    "AnomalyPruneCallback",
    "AnomalyReport",
    "OutlierDetector",
    "OutlierReport",
    "TwoSampleCallback",
    "TwoSampleEarlyStopping",
    "TwoSampleReport",
    "analyze",
    "find_outliers",
    "two_sample_test",
]
