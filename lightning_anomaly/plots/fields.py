"""What pictures know of a report or a history: the fields. The report's class knows the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict

from lightning_anomaly.report.layer_report import LayerReport

__all__ = ["ComparisonFields", "ReportFields"]


class ComparisonFields(TypedDict):
    """What a `TwoSampleCallback` remembers of a validation, in plain types.

    Attributes:
        epoch: The epoch that it belongs to.
        step: Optimizer steps before it.
        metrics: What was found, by the names behind the prefix of what is logged.
        compares_output: Whether the output was compared; else its metrics are those of before, or stand for nothing.
        share_p_values: Of each layer with filters that could be judged, how often random divisions of the same images
            find as large a share of them. What was logged of another layer stands for nothing.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    compares_output: bool
    share_p_values: dict[str, float]


class ReportFields(Protocol):
    """The fields of an `AnomalyReport`."""

    @property
    def layers(self) -> Mapping[str, LayerReport]:
        """Layers by name."""

    @property
    def n_samples(self) -> int:
        """Number of probe samples, N."""

    @property
    def count(self) -> int:
        """Number of anomaly filters."""

    @property
    def fraction(self) -> float:
        """The same, as a fraction of the filters that could be clustered."""

    @property
    def outlier_samples(self) -> list[int]:
        """Of how many filters each sample is an outlier."""

    @property
    def outlier_scores(self) -> list[float]:
        """How far each sample is from the others."""

    @property
    def by_outlier_score(self) -> list[int]:
        """The samples, the one with the largest score first."""
