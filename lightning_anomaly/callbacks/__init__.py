"""Lightning callbacks: thin shells over the analysis and the mask."""

from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback

__all__ = ["AnomalyFilterCallback"]
