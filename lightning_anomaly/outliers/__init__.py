"""Images that do not belong, in data of any size: searched for, judged by a reference, and reported."""

from lightning_anomaly.outliers.detector import OutlierDetector, find_outliers
from lightning_anomaly.outliers.report import OutlierReport

__all__ = ["OutlierDetector", "OutlierReport", "find_outliers"]
