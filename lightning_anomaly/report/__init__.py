"""What an analysis found: numbers per filter, per layer and for the whole network, and pictures to look at."""

from lightning_anomaly.report.anomaly_report import AnomalyReport
from lightning_anomaly.report.layer_report import LayerReport

__all__ = ["AnomalyReport", "LayerReport"]
