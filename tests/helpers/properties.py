"""Properties that hold for every analysis of maps `(N, F, ...)`."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from zoo import analyzed, captured

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.filters.layer_report import LayerReport

PER_FILTER = ["n_components", "calinski_harabasz", "smallest_share", "clusters", "points", "outliers", "isolated"]
PER_FILTER += ["explained", "sparsity"]
DECISIONS = ["n_components", "clusters", "outliers", "smallest_share"]


def assert_same(found: LayerReport, expected: LayerReport, names: Iterable[str] | None = None) -> None:
    """Compare verdicts and the named values, by default all: numbers to 1e-6, the rest exactly."""
    assert found.verdicts == expected.verdicts
    for name in [field.name for field in fields(LayerReport)] if names is None else names:
        assert_same_value(getattr(found, name), getattr(expected, name), name)


def assert_same_value(value: Any, other: Any, name: str) -> None:
    if isinstance(value, Tensor) and value.is_floating_point():
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6, equal_nan=True, msg=lambda m: f"{name}: {m}")
    elif isinstance(value, Tensor):
        assert torch.equal(value, other), f"{name} differs in {int((value != other).sum())} values"
    else:
        assert value == other, name


def assert_filters_are_independent(maps: Tensor, settings: AnalysisSettings) -> None:
    """The report of each filter alone equals its part of the report of all filters."""
    whole = analyzed(captured(maps), settings)
    for index in range(maps.shape[1]):
        alone = analyzed(captured(maps[:, [index]]), settings)
        assert alone.verdicts[0] == whole.verdicts[index]
        for name in PER_FILTER:
            assert_same_value(getattr(alone, name)[0], getattr(whole, name)[index], f"{name} of filter {index}")


def assert_permuting_filters_permutes_verdicts(maps: Tensor, settings: AnalysisSettings) -> None:
    order = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(0))
    before, after = (analyzed(captured(values), settings) for values in (maps, maps[:, order]))
    assert after.verdicts == tuple(before.verdicts[index] for index in order)
    for name in PER_FILTER:
        assert_same_value(getattr(after, name), getattr(before, name)[order], name)


def assert_permuting_samples_permutes_labels(maps: Tensor, settings: AnalysisSettings) -> None:
    """Verdicts, K and shares do not change; labels, outliers and, up to rounding, points are permuted."""
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(0))
    before, after = (analyzed(captured(values), settings) for values in (maps, maps[order]))
    assert_same(after, before, ["n_components", "smallest_share"])
    assert torch.equal(after.outliers, before.outliers[:, order])
    assert torch.equal(after.clusters, before.clusters[:, order])
    torch.testing.assert_close(after.points, before.points[:, order], rtol=0, atol=1e-5)


def assert_scaling_and_shifting_change_nothing(
    maps: Tensor, settings: AnalysisSettings, scale: float, shift: float
) -> None:
    """No decision changes, and points only by rounding. `shift` is in units of the maps."""
    before, after = (analyzed(captured(values), settings) for values in (maps, (maps + shift) * scale))
    assert_same(after, before, DECISIONS)
    torch.testing.assert_close(after.points, before.points, rtol=0, atol=1e-5)


def assert_finite(report: LayerReport) -> None:
    """All numbers of a report are finite, in their range, and of the documented shape."""
    filters, samples = report.points.shape[:2]
    assert len(report.verdicts) == filters
    for name in ("points", "calinski_harabasz", "smallest_share", "explained", "sparsity"):
        value = getattr(report, name)
        assert value.isfinite().all(), name
        assert len(value) == filters
    for name in ("smallest_share", "explained", "sparsity"):
        value = getattr(report, name)
        assert ((value >= 0) & (value <= 1)).all(), name
    assert (report.calinski_harabasz >= 0).all()
    assert report.clusters.shape == report.outliers.shape == (filters, samples)
    assert set(report.verdicts) <= {"normal", "anomaly", "dead", "nonfinite"}
    flagged = [verdict == "anomaly" for verdict in report.verdicts]
    assert report.outliers.any(1).tolist() == flagged
    assert ((report.clusters >= 0) & (report.clusters < report.n_components.clamp(min=1)[:, None])).all()
