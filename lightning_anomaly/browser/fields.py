"""What the browser knows of a report: its fields, as the pictures in `plots` do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from lightning_anomaly.plots.fields import ReportFields
from lightning_anomaly.report.pictures import Pictures

__all__ = ["BrowsedOutliers", "BrowsedReport"]


class BrowsedReport(ReportFields, Protocol):
    """The fields of an `AnomalyReport`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was analysed, as plain values."""

    @property
    def notes(self) -> Mapping[str, str]:
        """What could not be analysed and why."""

    @property
    def sparsity(self) -> float:
        """Fraction of map values that are at most 0."""

    @property
    def pictures(self) -> Pictures | None:
        """Images and maps, where they were kept."""


class BrowsedOutliers(Protocol):
    """The fields of an `OutlierReport`."""

    @property
    def scores(self) -> Tensor:
        """The larger, the less an image belongs `(N,)`."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that judge."""

    @property
    def false_discovery_rate(self) -> float:
        """The share of ordinary images that is accepted among those found."""

    @property
    def images(self) -> Tensor | None:
        """Those with the largest scores, uint8 `(n, H, W, C)`."""

    def rows(self, k: int | None = None) -> list[dict[str, Any]]:
        """What is known of the k images with the largest scores."""
