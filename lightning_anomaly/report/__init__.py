"""The result of an analysis, by filter, by layer and for the whole network."""

from lightning_anomaly.report.anomaly_report import AnomalyReport
from lightning_anomaly.verdicts.layer_report import LayerReport

__all__ = ["AnomalyReport", "LayerReport"]
