"""A score that a group of near-duplicates cannot hide from."""

import torch

from lightning_anomaly.scores import layer_scores
from recipes.experiments.common.ranks import auroc
from recipes.experiments.outliers.grouped import apart, grouped_scores

RNG = torch.Generator().manual_seed(0)
ORDINARY = torch.randn(512, 40, 5, generator=RNG) @ torch.randn(5, 5, generator=RNG)
DIRECTION = torch.randn(40, 5, generator=RNG)


def with_group(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last ones of the samples replaced by some that are nearly the same, and which these are."""
    samples = ORDINARY.clone()
    samples[512 - count :] = 4 * DIRECTION + 0.05 * torch.randn(count, 40, 5, generator=RNG)
    return samples, torch.arange(512) >= 512 - count


def test_a_group_counts_once_and_is_found_as_a_single_sample_is() -> None:
    samples, truth = with_group(26)
    assert apart(samples)[truth].sum() == 1
    assert auroc(truth, layer_scores(samples)) < 0.9  # so many make a direction of their own
    assert auroc(truth, grouped_scores(samples)) == 1
    single, alone = with_group(1)
    assert auroc(alone, layer_scores(single)) == auroc(alone, grouped_scores(single)) == 1


def test_most_samples_without_near_duplicates_are_learnt_from() -> None:
    assert 0.6 < apart(ORDINARY).double().mean() <= 1


def test_samples_that_are_all_the_same_have_no_score() -> None:
    assert grouped_scores(torch.ones(30, 4, 5)).tolist() == [0] * 30
