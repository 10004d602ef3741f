"""Lightning callbacks: thin shells over the analysis and the mask."""

from lightning_anomaly.callbacks.anomaly_early_stopping import AnomalyEarlyStopping
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.anomaly_prune import AnomalyPruneCallback
from lightning_anomaly.callbacks.run_page import save_run_page
from lightning_anomaly.callbacks.two_sample import TwoSampleCallback
from lightning_anomaly.callbacks.two_sample_early_stopping import TwoSampleEarlyStopping

__all__ = [
    "AnomalyEarlyStopping",
    "AnomalyFilterCallback",
    "AnomalyPruneCallback",
    "TwoSampleCallback",
    "TwoSampleEarlyStopping",
    "save_run_page",
]
