"""Tests whether a network treats training and validation images differently, by its output and by its filters."""

from lightning_anomaly.memorization.comparison import two_sample_test
from lightning_anomaly.memorization.label_doubts import LabelDoubt
from lightning_anomaly.memorization.memorization_report import LayerComparison, MemorizationReport

__all__ = ["LabelDoubt", "LayerComparison", "MemorizationReport", "two_sample_test"]
