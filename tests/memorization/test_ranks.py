"""The rank test of all filters is scipy's for each filter, and permutation p-values are exact."""

import math

import scipy.stats
import torch

from lightning_anomaly.memorization.ranks import layer_p_values, permutation_p_value, random_divisions, rank_test

RNG = torch.Generator().manual_seed(0)
VALUES = torch.randn(5, 60, generator=RNG).relu()  # with many ties


def test_results_of_many_divisions_are_scipys_for_each() -> None:
    divisions = random_divisions(20, 60)[:, :8]
    areas, p_values = rank_test(VALUES, divisions)
    for column, first in enumerate(divisions.T):
        values = VALUES.double().numpy()
        one = scipy.stats.mannwhitneyu(values[:, first], values[:, ~first], axis=1, method="asymptotic")
        torch.testing.assert_close(areas[:, column], torch.from_numpy(one.statistic) / (20 * 40))
        torch.testing.assert_close(p_values[:, column], torch.from_numpy(one.pvalue))
        alone = rank_test(VALUES[2:3], first[:, None])
        assert (alone[0].item(), alone[1].item()) == (areas[2, column].item(), p_values[2, column].item())
    assert rank_test(VALUES[:0], divisions)[1].shape == (0, 8)


def test_divisions_are_random_and_reproducible() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    divisions = random_divisions(30, 90)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(divisions, random_divisions(30, 90))
    assert divisions.sum(0).tolist() == [30] * 999
    often = divisions.double().mean(1)
    assert (often - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 999)
    assert len(divisions.T.unique(dim=0)) == 999


def test_the_permutation_p_value_counts_the_true_division_too() -> None:
    chance = torch.tensor([0.0, 0.1, 0.2, 0.2])
    assert [permutation_p_value(found, chance) for found in (0.0, 0.2, 0.3)] == [1.0, 3 / 5, 1 / 5]


def test_some_layer_of_many_has_a_small_p_value_as_often_as_it_says() -> None:
    """If each division in turn is the actual one, 1% of them must have a p-value of 1%."""
    found = torch.randn(60, 1000, generator=RNG, dtype=torch.float64).exp() * torch.logspace(-3, 3, 60)[:, None]
    p_values = [layer_p_values(found.roll(-place, 1)) for place in range(1000)]
    least = torch.tensor([min(of_division) for of_division in p_values])
    assert [int((least <= level).sum()) for level in (0.01, 0.05)] == [10, 50]


def test_a_clear_layer_has_the_smallest_p_value_and_rounding_is_no_evidence() -> None:
    found = torch.rand(3, 1000, generator=RNG, dtype=torch.float64)
    found[0, 0], found[1] = 2, 0
    first, constant, _ = layer_p_values(found)
    assert first == layer_p_values(found[:1])[0] == 0.001
    assert constant > 0.5
    found[0, 1:10] = 2 - 1e-15
    assert layer_p_values(found)[0] == 0.01
    assert layer_p_values(found[:0]) == []
