"""Outlier samples against the rest."""

import pytest
import torch
from torch import Tensor

from lightning_anomaly.report import AnomalyReport, LayerReport
from lightning_anomaly.verdicts.rare import ANOMALY, NORMAL
from recipes.experiments.common.ranks import rank_correlation
from recipes.experiments.h2.ratios import gradient_ratios, means, medians, ratio_with_interval


def test_ratios_and_their_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    group, rest = (torch.rand(200, generator=generator) + shift for shift in (1.0, 0.5))
    ratio, low, high = ratio_with_interval(group, rest, means)
    assert ratio == pytest.approx((group.double().mean() / rest.double().mean()).item())
    error = ratio * ((group.std() / group.mean()) ** 2 / 200 + (rest.std() / rest.mean()) ** 2 / 200).sqrt().item()
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < ratio < high
    assert ratio_with_interval(group, rest, means) == [ratio, low, high]
    assert ratio_with_interval(group, rest, medians)[0] == pytest.approx((group.median() / rest.median()).item())
    assert ratio_with_interval(torch.ones(3), torch.zeros(3))[0] == float("inf")
    assert rank_correlation(torch.tensor([0.0, 1, 5]), torch.tensor([2.0, 3, 4])) == pytest.approx(1)
    assert rank_correlation(torch.zeros(3), torch.rand(3)) is None
    assert rank_correlation(torch.tensor([0.0, 1, torch.nan]), torch.rand(3)) is None


def report_with(outliers: Tensor) -> AnomalyReport:
    """One layer "0" of which each filter `(F, N)` has the given outliers."""
    filters = len(outliers)
    layer = LayerReport(
        verdicts=tuple(ANOMALY if one.any() else NORMAL for one in outliers),
        n_components=torch.full((filters,), 2),
        calinski_harabasz=torch.ones(filters),
        smallest_share=torch.ones(filters),
        labels=outliers.long(),
        points=torch.zeros(*outliers.shape, 2),
        outliers=outliers,
        isolated=torch.zeros_like(outliers),
        explained=torch.ones(filters),
        sparsity=torch.zeros(filters),
        map_size=(1, 1),
        analysed_size=(1, 1),
    )
    return AnomalyReport({"0": layer}, outliers.shape[1])


def test_gradients_of_outliers_against_the_rest() -> None:
    outliers = torch.zeros(2, 40, dtype=torch.bool)
    outliers[0, :4] = outliers[1, 2:4] = True
    norms = {"0": torch.full((40,), 3.0), "9": torch.full((40,), 4.0)}
    norms["0"][:4], norms["9"][:4] = 6.0, 8.0
    found = gradient_ratios(report_with(outliers), norms, torch.ones(40))
    assert found["all"]["n"] == found["0"]["n"] == 4
    assert found["all"]["mean"] == found["all"]["median"] == found["0"]["own"] == [2.0, 2.0, 2.0]
    assert found["all"]["loss"] == [1.0, 1.0, 1.0]
    assert found["spearman"] > 0.9
    few = gradient_ratios(report_with(outliers[1:]), norms, torch.ones(40))
    assert few["all"] == {"n": 2}
