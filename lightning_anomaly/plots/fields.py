"""What pictures know of a report or a history: the fields. The report's class knows the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict

from torch import Tensor

__all__ = ["ComparisonFields", "LayerFields", "ReportFields"]


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


class LayerFields(Protocol):
    """The fields of a `LayerReport`."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One for each of F filters."""

    @property
    def n_components(self) -> Tensor:
        """Components of the clustering shown `(F,)`."""

    @property
    def calinski_harabasz(self) -> Tensor:
        """Its index `(F,)`."""

    @property
    def labels(self) -> Tensor:
        """Its clusters `(F, N)`."""

    @property
    def points(self) -> Tensor:
        """What was clustered `(F, N, 2)`."""

    @property
    def outliers(self) -> Tensor:
        """Whether each sample is an outlier of each filter `(F, N)`."""

    @property
    def isolated(self) -> Tensor:
        """Whether each filter sets each sample apart from all others `(F, N)`."""

    @property
    def explained(self) -> Tensor:
        """Fraction of the maps' variance that the points hold `(F,)`."""

    def filters(self, verdict: str) -> list[int]:
        """The filters with a verdict."""


class ReportFields(Protocol):
    """The fields of an `AnomalyReport`."""

    @property
    def layers(self) -> Mapping[str, LayerFields]:
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
