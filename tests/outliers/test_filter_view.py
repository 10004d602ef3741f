"""Outlier scores of the filter view depend on ranks alone, are equal for equal samples, and are large for outliers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_anomaly.outliers import filter_view
from lightning_anomaly.outliers.filter_view import ReferenceModel, Spread, layer_scores
from lightning_anomaly.outliers.ranks import _in_torch, rank_lookup


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics(samples: int = 200, filters: int = 12, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Five numbers of each filter that depend on six common causes, so that some combinations are unusual."""
    causes = torch.randn(samples, 6, generator=rng(seed))
    mix = torch.randn(6, filters * 5, generator=rng(1))
    rest = noise * torch.randn(samples, filters * 5, generator=rng(seed + 2))
    return (causes @ mix + rest).unflatten(1, (filters, 5))


def first(scores: Tensor, count: int = 1) -> set[int]:
    return set(scores.argsort(descending=True)[:count].tolist())


def test_an_extreme_sample_has_the_largest_score():
    planted = statistics()
    planted[7] *= 10
    scores = layer_scores(planted)
    assert scores[7] > 1.5 * scores[torch.arange(200) != 7].max()


def test_an_unusual_combination_is_found_by_normal_scores_and_not_by_tails():
    planted = statistics()
    planted[30] = torch.stack([statistics()[i, :, i % 5] for i in range(5)], 1)  # each number alone is ordinary
    ordinary = ReferenceModel.fit(planted)
    assert ordinary is not None
    tails, values = ordinary.mahalanobis_squared(planted)[0].unbind(1)
    assert first(values) == {30}
    assert values[30] > 3 * values.median()
    assert tails[30] < tails.quantile(0.9)


@pytest.mark.parametrize("samples", [60, 100])
def test_an_unusual_combination_is_found_in_a_small_probe(samples):
    """Along nearly as many directions as there are samples, all samples would be equally far."""
    for seed in range(4):
        planted = statistics(samples, 60, seed=10 * seed, noise=0.7)
        mix = torch.randn(6, 300, generator=rng(99))  # other causes than those of all the others
        planted[30] = (torch.randn(6, generator=rng(seed)) @ mix).view(60, 5)
        assert first(layer_scores(planted)) == {30}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("samples", "filters"), [(200, 12), (512, 60)])  # 200 of 60: docs/outliers.md
def test_similar_outliers_that_are_a_twentieth_of_the_samples_are_found(samples, filters, seed):
    ordinary = statistics(samples, filters, seed=10 * seed, noise=1)
    alike = range(0, samples, 20)
    ordinary[alike] = 0.1 * ordinary[alike] + 6 * torch.randn(filters, 5, generator=rng(3 + seed))
    assert first(layer_scores(ordinary), len(alike)) == {*alike}


def test_scores_depend_on_ranks_alone():
    ordinary = statistics()
    scores = layer_scores(ordinary)
    torch.testing.assert_close(layer_scores((ordinary / 4).exp()), scores, rtol=1e-4, atol=1e-4)
    scales = torch.logspace(-9, 9, 12)[:, None]
    torch.testing.assert_close(layer_scores(ordinary * scales - 3 * scales), scores, rtol=1e-4, atol=1e-4)


def test_scores_are_permuted_with_the_samples_and_equal_samples_have_equal_scores():
    ordinary = statistics()
    ordinary[20:26] = ordinary[20].clone()
    scores, order = layer_scores(ordinary), torch.randperm(200, generator=rng(5))
    torch.testing.assert_close(layer_scores(ordinary[order]), scores[order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores[20:26], scores[20].expand(6))


def drawn(samples: int, rows: int, knots: int, decimals: int) -> tuple[Tensor, ...]:
    """Values, knots, and two tables: one of its own indices, one of random numbers."""
    generator = torch.Generator().manual_seed(knots)
    values = torch.randn(samples, rows, generator=generator)
    sorted_knots = torch.randn(rows, knots, generator=generator).sort(1).values
    values, sorted_knots = values.round(decimals=decimals), sorted_knots.round(decimals=decimals)
    values[:3] = torch.tensor([[-np.inf], [np.inf], [1e30]])
    tables = torch.stack([torch.arange(2.0 * knots + 1), torch.randn(2 * knots + 1, generator=generator)])
    return values, sorted_knots, tables


@pytest.mark.parametrize("lookup", [rank_lookup, _in_torch])
@pytest.mark.parametrize(("samples", "rows", "knots"), [(300, 7, 512), (5, 30, 100), (64, 3, 1), (64, 3, 2)])
def test_a_lookup_reads_the_table_at_twice_the_mid_rank(lookup, samples, rows, knots):
    for decimals in (6, 1, -2):  # few values are equal, many, and all
        values, sorted_knots, tables = drawn(samples, rows, knots, decimals)
        found = lookup(values, sorted_knots, tables).numpy()
        below = (sorted_knots.numpy() < values.numpy()[:, :, None]).sum(2)
        up_to = (sorted_knots.numpy() <= values.numpy()[:, :, None]).sum(2)
        np.testing.assert_array_equal(found[0], below + up_to)
        np.testing.assert_array_equal(found[1], tables[1].numpy()[below + up_to])
        values[:] = torch.nan
        assert set(lookup(values, sorted_knots, tables)[0].unique().tolist()) <= {0, 2 * knots}


def test_knots_are_every_second_of_the_sorted_values():
    values = torch.randperm(1023, generator=rng()).float()[:, None]
    assert filter_view._knots(values).tolist() == [[float(value) for value in range(0, 1023, 2)]]


def test_the_score_of_a_sample_does_not_depend_on_the_others():
    ordinary = ReferenceModel.fit(statistics(700))
    assert ordinary is not None
    lengths, tails = ordinary.mahalanobis_squared(statistics(50, seed=9))
    for sample in (0, 17, 49):
        alone = ordinary.mahalanobis_squared(statistics(50, seed=9)[sample : sample + 1])
        torch.testing.assert_close(alone[0][0], lengths[sample])
        assert torch.equal(alone[1][0], tails[sample])


def test_the_most_extreme_filters_are_named():
    ordinary = ReferenceModel.fit(statistics())
    assert ordinary is not None
    odd = statistics()[:1].clone()
    odd[0, 9], odd[0, 3] = 1e3, -1e3
    _, tails = ordinary.mahalanobis_squared(odd)
    assert set(ordinary.extreme_filters(tails, 12, 2)[0].tolist()) == {3, 9}
    assert ordinary.extreme_filters(tails, 12, 14)[0].tolist()[12:] == [-1, -1]
    assert ordinary.extreme_filters(tails[:0], 12, 2).shape == (0, 2)


def test_spreads_above_the_median_are_summed_and_infinite_ones_left_out():
    reference = torch.tensor([[0.0, 10.0], [1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [4.0, 60.0], [math.inf, math.inf]])
    others = torch.tensor([[2.0, 10.0], [2 + 1.4826, 10.0], [2.0, 10 + 500**0.5]])
    for unit in (1.0, 1e-3):
        found = Spread.fit(unit * reference).scores(unit * others)
        torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.0]), rtol=1e-5, atol=1e-4)


def test_samples_and_filters_with_nan_do_not_change_other_scores():
    planted = statistics()
    planted[7, 2, 1], planted[50, 0, 0], planted[:, 4] = math.nan, math.inf, math.nan
    scores = layer_scores(planted)
    others = torch.tensor([i for i in range(200) if i not in (7, 50)])
    kept = torch.tensor([i for i in range(12) if i != 4])
    assert scores[[7, 50]].isinf().all()
    torch.testing.assert_close(scores[others], layer_scores(statistics()[others][:, kept]))


@pytest.mark.parametrize(
    "nothing", [torch.ones(50, 3, 5), torch.full((50, 3, 5), math.nan), statistics(7), torch.zeros(0, 3, 5)]
)
def test_scores_of_constant_or_few_samples_are_zero(nothing):
    assert layer_scores(nothing).tolist() == [0] * len(nothing)
