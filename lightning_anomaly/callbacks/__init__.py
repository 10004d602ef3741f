"""Lightning callbacks: thin shells over the analysis and the mask."""

from lightning_anomaly.callbacks.anomaly_early_stopping import AnomalyEarlyStopping
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.anomaly_prune import AnomalyPruneCallback
from lightning_anomaly.callbacks.memorization import MemorizationCallback
from lightning_anomaly.callbacks.memorization_early_stopping import MemorizationEarlyStopping
from lightning_anomaly.callbacks.run_page import save_run_page

__all__ = [
    "AnomalyEarlyStopping",
    "AnomalyFilterCallback",
    "AnomalyPruneCallback",
    "MemorizationCallback",
    "MemorizationEarlyStopping",
    "save_run_page",
]
