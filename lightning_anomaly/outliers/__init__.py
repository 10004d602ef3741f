"""Search for outlier images in data of any size: views, scores, a detector and its report."""

from lightning_anomaly.outliers.detector import OutlierDetector, find_outliers
from lightning_anomaly.outliers.outlier_report import OutlierReport

__all__ = ["OutlierDetector", "OutlierReport", "find_outliers"]
