"""Tests whether a network treats training and validation images differently, by its output and by its filters."""

from lightning_anomaly.memorization.memorization_report import LayerComparison, MemorizationReport
from lightning_anomaly.memorization.two_sample import two_sample_test

__all__ = ["LayerComparison", "MemorizationReport", "two_sample_test"]
