"""Images that do not belong, in data of any size: searched for, judged by a reference, and reported."""

from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.outliers.search import find_outliers

__all__ = ["OutlierReport", "find_outliers"]
