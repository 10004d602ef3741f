"""What holds for every analysis, by name. `analyse` makes a `LayerReport` of maps `(N, F, ...)`."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.report import LayerReport

Analyse = Callable[[LayerMaps], LayerReport]
Take = Callable[[Tensor], LayerMaps]

PER_FILTER = ["n_components", "calinski_harabasz", "smallest_share", "labels", "points", "outliers", "isolated"]
PER_FILTER += ["explained", "sparsity"]
DECISIONS = ["n_components", "labels", "outliers", "smallest_share"]


def assert_same(found: LayerReport, expected: LayerReport, names: Iterable[str] | None = None) -> None:
    """The verdicts and every other value named, all by default: numbers to 1e-6, all else exactly."""
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


def assert_batched_equals_one_at_a_time(function: Callable[..., Iterable[Tensor]], *tensors: Tensor) -> None:
    """A function of tensors `(F, ...)` gives what it gives for each filter alone, and for groups of three."""
    batched = list(function(*tensors))
    for size in (1, 3):
        parts = [list(function(*part)) for part in zip(*(tensor.split(size) for tensor in tensors), strict=True)]
        for index, whole in enumerate(batched):
            assert_same_value(torch.cat([part[index] for part in parts]), whole, f"result {index}")


def assert_filters_do_not_see_each_other(analyse: Analyse, take: Take, maps: Tensor) -> None:
    """The report of all filters holds what the reports of the single filters hold."""
    whole = analyse(take(maps))
    for index in range(maps.shape[1]):
        alone = analyse(take(maps[:, [index]]))
        assert alone.verdicts[0] == whole.verdicts[index]
        for name in PER_FILTER:
            assert_same_value(getattr(alone, name)[0], getattr(whole, name)[index], f"{name} of filter {index}")


def assert_permuting_filters_permutes_verdicts(analyse: Analyse, take: Take, maps: Tensor) -> None:
    """Verdicts and all numbers follow their filter."""
    order = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(0))
    before, after = analyse(take(maps)), analyse(take(maps[:, order]))
    assert after.verdicts == tuple(before.verdicts[index] for index in order)
    for name in PER_FILTER:
        assert_same_value(getattr(after, name), getattr(before, name)[order], name)


def assert_permuting_samples_permutes_labels(analyse: Analyse, take: Take, maps: Tensor) -> None:
    """Verdicts, K and shares stay, labels and outliers follow their sample exactly, points up to rounding."""
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(0))
    before, after = analyse(take(maps)), analyse(take(maps[order]))
    assert_same(after, before, ["n_components", "smallest_share"])
    assert torch.equal(after.outliers, before.outliers[:, order])
    assert torch.equal(after.labels, before.labels[:, order])
    torch.testing.assert_close(after.points, before.points[:, order], rtol=0, atol=1e-5)


def assert_scaling_and_shifting_change_nothing(
    analyse: Analyse, take: Take, maps: Tensor, scale: float, shift: float
) -> None:
    """All decisions stay, exactly; points up to rounding. `shift` is in units of the maps."""
    before, after = analyse(take(maps)), analyse(take((maps + shift) * scale))
    assert_same(after, before, DECISIONS)
    torch.testing.assert_close(after.points, before.points, rtol=0, atol=1e-5)


def assert_all_the_same(reports: Iterable[LayerReport]) -> None:
    """Several analyses of one layer give the same report."""
    first, *others = reports
    assert others
    for other in others:
        assert_same(other, first)


def assert_finite(report: LayerReport) -> None:
    """A report of numbers that can be logged and stored, in the shapes that it promises."""
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
    assert report.labels.shape == report.outliers.shape == (filters, samples)
    assert set(report.verdicts) <= {"normal", "anomaly", "dead", "nonfinite"}
    flagged = [verdict == "anomaly" for verdict in report.verdicts]
    assert report.outliers.any(1).tolist() == flagged
    assert ((report.labels >= 0) & (report.labels < report.n_components.clamp(min=1)[:, None])).all()
