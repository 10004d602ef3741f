"""Numbers that describe a layer, against other ways to the same numbers."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from sklearn.feature_selection import f_classif

from lightning_anomaly.report import LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, DEAD, NORMAL
from recipes.experiments.h1.layer_statistics import (
    class_separation,
    gap,
    kurtosis,
    layer_statistics,
    silent_share,
    tail_gaps,
)

RNG = torch.Generator().manual_seed(0)
POINTS = torch.randn(5, 60, 2, generator=RNG, dtype=torch.float64)


def test_kurtosis_is_scipys() -> None:
    values = POINTS[:, :, 0].exp()
    expected = scipy.stats.kurtosis(values.numpy(), axis=1, fisher=False)
    torch.testing.assert_close(kurtosis(values), torch.from_numpy(expected))


def test_class_separation_is_that_of_an_analysis_of_variance() -> None:
    labels = torch.arange(60) % 4
    flat = torch.stack([POINTS[:, :, 0], torch.zeros(5, 60, dtype=torch.float64)], 2)
    f, _ = f_classif(flat[:, :, 0].T.numpy(), labels.numpy())
    expected = torch.from_numpy(3 * f / (3 * f + 56))  # between over total, from their ratio
    torch.testing.assert_close(class_separation(flat, labels), expected)
    means = torch.stack([POINTS[:, labels == c].mean(1) for c in range(4)], 1)
    torch.testing.assert_close(class_separation(means[:, labels], labels), torch.ones(5, dtype=torch.float64))


def test_a_filter_is_silent_for_the_samples_on_its_median_point() -> None:
    points = POINTS.clone()
    points[1, :57] = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert silent_share(points)[1] == 57 / 60
    assert (silent_share(points)[[0, 2, 3, 4]] <= 1 / 60).all()


def test_the_gap_is_the_smallest_distance_to_another_sample() -> None:
    points, outliers = POINTS.clone(), torch.zeros(5, 60, dtype=torch.bool)
    points[2, 7], points[2, 8] = torch.tensor([90.0, 0.0]), torch.tensor([100.0, 0.0])
    outliers[2, [7, 8]] = True
    expected = min(math.dist(points[2, 7], points[2, i]) for i in range(60) if i not in (7, 8))
    assert gap(points, outliers)[2].item() == pytest.approx(expected)
    assert gap(points, outliers)[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]


def around(distances: torch.Tensor) -> torch.Tensor:
    """Points at these distances from 0, in random directions."""
    angle = 2 * math.pi * torch.rand(distances.shape, generator=RNG, dtype=torch.float64)
    return torch.stack([distances * angle.cos(), distances * angle.sin()], 2)


def test_a_tail_of_one_piece_has_a_gap_as_often_as_the_null_says() -> None:
    uniform = torch.rand(2000, 512, generator=RNG, dtype=torch.float64)
    for weight in (0.2, 1.0):  # however heavy the tail
        found = tail_gaps(around(uniform**-weight))
        for chance in (0.01, 0.1, 0.5):
            assert (found <= chance).double().mean().item() == pytest.approx(chance, abs=4 * math.sqrt(chance / 2000))
    gaussian = tail_gaps(torch.randn(2000, 512, 2, generator=RNG))
    assert (gaussian <= 0.01).double().mean() <= 0.01


def test_a_group_apart_leaves_a_gap_in_the_tail_at_any_scale() -> None:
    points = torch.randn(50, 512, 2, generator=RNG, dtype=torch.float64)
    points[:25, :8, 0] += 12
    found = tail_gaps(points)
    assert (found[:25] < 0.01).all()
    assert (found[25:] > 0.001).all()
    torch.testing.assert_close(tail_gaps(1000 * points), found)
    order = torch.randperm(512, generator=RNG)
    torch.testing.assert_close(tail_gaps(points[:, order]), found)


def test_a_filter_that_is_silent_but_for_a_few_samples_has_no_tail_to_judge() -> None:
    points = POINTS.clone()
    points[1, 3:] = 0
    assert tail_gaps(points)[1] == 1
    assert (tail_gaps(points)[[0, 2, 3, 4]] < 1).all()


def layer(**changes: Any) -> LayerReport:
    """Five filters, of which the second is silent but for two samples and the fifth is dead."""
    points, outliers = POINTS.float().clone(), torch.zeros(5, 60, dtype=torch.bool)
    points[1] = 0
    points[1, :2] = 5.0
    points[4] = 0
    outliers[1, :2], outliers[2, 3] = True, True
    fields: dict[str, Any] = {
        "verdicts": (NORMAL, ANOMALY, ANOMALY, NORMAL, DEAD),
        "points": points,
        "outliers": outliers,
        "isolated": torch.zeros_like(outliers).index_fill_(0, torch.tensor(3), True),
        "sparsity": torch.tensor([0.1, 0.9, 0.2, 0.3, 1.0], dtype=torch.float64),
        "map_size": (4, 4),
        "analysed_size": (4, 4),
    }
    rest = dict.fromkeys(("n_components", "calinski_harabasz", "smallest_share", "labels", "explained"), torch.zeros(5))
    return LayerReport(**{**rest, **fields, **changes})


def test_layer_statistics_count_what_was_planted() -> None:
    explained = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.0], dtype=torch.float64)
    found = layer_statistics(layer(explained=explained), torch.arange(60) % 3)
    counts = {name: found[name] for name in ("count", "live", "dead", "silent", "isolated", "set_apart", "outliers")}
    assert counts == {
        "count": 2, "live": 4, "dead": 1, "silent": 1, "isolated": 1, "set_apart": 1, "outliers": 3
    }  # fmt: skip
    assert found["sparsity"] == pytest.approx(0.5)
    assert found["outside"] == pytest.approx(0.25)
    assert found["second"] == pytest.approx(layer().points[:4, :, 1].double().numpy().var(1).mean())
    nothing = layer_statistics(layer(verdicts=(DEAD,) * 5, outliers=torch.zeros(5, 60).bool()), torch.arange(60) % 3)
    assert (nothing["count"], nothing["kurtosis"], nothing["separation"], nothing["outside"]) == (0, 0.0, 0.0, 0.0)
