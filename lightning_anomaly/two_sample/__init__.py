"""Tests whether a network treats training and validation images differently, by its output and by its filters."""

from lightning_anomaly.two_sample.comparison import two_sample_test
from lightning_anomaly.two_sample.label_doubts import LabelDoubt
from lightning_anomaly.two_sample.two_sample_report import LayerComparison, TwoSampleReport

__all__ = ["LabelDoubt", "LayerComparison", "TwoSampleReport", "two_sample_test"]
