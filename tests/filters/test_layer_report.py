"""Rare clusters, votes of clusterings, and the clustering of a report."""

import pytest
import torch

from lightning_anomaly.filters.layer_report import (
    first_largest,
    outlier_samples,
    rare_samples,
    shown_clustering,
    smallest_share,
)
from lightning_anomaly.filters.mixtures import Clustering


def sizes(*counts: int) -> torch.Tensor:
    """Make labels with these cluster sizes."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def clustering(*filters: list[torch.Tensor], index: list[list[float]]) -> Clustering:
    labels = torch.stack([torch.stack(clusterings) for clusterings in filters])
    return Clustering(torch.arange(2, 2 + labels.shape[1]), labels, torch.tensor(index, dtype=torch.float64))


@pytest.mark.parametrize("percent", [1, 7, 29, 49])
def test_a_cluster_of_exactly_the_rare_fraction_is_rare_and_a_larger_one_is_not(percent):
    # despite rounding: 0.29 * 100 is 28.999999999999996, 0.07 * 100 is 7.000000000000001
    found = rare_samples(sizes(percent, 100 - percent), percent / 100)
    assert found.nonzero().flatten().tolist() == [*range(percent)]
    assert not rare_samples(sizes(percent + 1, 99 - percent), percent / 100)[: percent + 1].any()


def test_clusters_are_rare_by_their_size():
    assert rare_samples(sizes(196, 1, 2, 1), 0.01).sum() == 4
    assert rare_samples(torch.stack([sizes(199, 1), sizes(197, 3)]), 0.01).sum(1).tolist() == [1, 0]


def test_votes_are_counted_sample_by_sample():
    # each clustering has another rare sample
    others = [sizes(99, 1), sizes(1, 99), sizes(99, 1), sizes(1, 99)]
    assert not outlier_samples(clustering(others, index=[[1, 1, 1, 1]]), 0.01, "votes").any()


def test_the_best_rule_uses_only_the_clustering_with_the_largest_index():
    rare, common = sizes(99, 1), sizes(50, 50)
    found = outlier_samples(
        clustering([rare, common, common], [rare, rare, common], index=[[3, 2, 1], [1, 2, 3]]), 0.01, "best"
    )
    assert found.any(1).tolist() == [True, False]


def test_the_votes_follow_one_outstanding_clustering_or_the_majority_of_similar_ones():
    rare, common = sizes(99, 1), sizes(50, 50)

    def flagged(rares: str, index: list[float]) -> bool:
        labels = [rare if letter == "r" else common for letter in rares]
        return bool(outlier_samples(clustering(labels, index=[index]), 0.01, "votes").any())

    # one decides if the others together have less than half of its index
    assert flagged("rccc", [12, 2, 2, 1.9])
    assert not flagged("rccc", [12, 2, 2, 2.1])
    assert not flagged("crrr", [12, 2, 2, 2])
    # of equal ones three of four decide; two thirds are not enough
    assert [flagged("r" * n + "c" * (4 - n), [7.0] * 4) for n in range(5)] == [False, False, False, True, True]
    assert not flagged("rrc", [1 / 3] * 3)
    assert not flagged("rccc", [12, 2, 2, 2])
    assert flagged("rrrrc", [1 / 3] * 5)
    # in any unit, and if all indices are 0
    for unit in (1e-300, 1e300):
        assert flagged("rccc", [10 * unit, unit, unit, unit])
    assert not flagged("cccc", [0.0] * 4)


@pytest.mark.parametrize("rule", ["votes", "best"])
@pytest.mark.parametrize("filters", [0, 2])
def test_a_single_cluster_has_no_outliers(rule, filters):
    none = Clustering(torch.zeros(1).long(), torch.zeros(filters, 1, 5).long(), torch.zeros(filters, 1))
    outliers = outlier_samples(none, 0.5, rule)
    assert outliers.shape == (filters, 5)
    assert not outliers.any()
    assert shown_clustering(none, outliers, 0.5).tolist() == [0] * filters
    assert smallest_share(none.labels[:, 0]).tolist() == [1.0] * filters


def test_the_shown_clustering_is_the_best_of_those_with_most_outliers():
    rare, common, other, both = sizes(99, 1), sizes(50, 50), sizes(1, 99), sizes(1, 98, 1)
    normal = clustering([common] * 3, [common] * 3, index=[[1, 3, 2], [2, 2, 1]])
    assert shown_clustering(normal, outlier_samples(normal, 0.01, "votes"), 0.01).tolist() == [1, 0]
    anomaly = clustering([common, rare, rare, rare], [other, both, rare, both], index=[[9, 1, 3, 2], [9, 1, 8, 2]])
    outliers = torch.zeros(2, 100, dtype=torch.bool)
    outliers[:, 99] = outliers[1, 0] = True
    assert shown_clustering(anomaly, outliers, 0.01).tolist() == [2, 3]


def test_the_smallest_share_ignores_empty_clusters():
    labels = torch.tensor([[0, 0, 0, 2], [1, 1, 1, 1]])
    assert smallest_share(labels).tolist() == [0.25, 1.0]


def test_the_largest_value_is_the_first_of_those_equal_up_to_rounding():
    for values, position in (
        ([1, 3 - 1e-12, 3, 2], 1),
        ([0, -1e-12, 1e-12, 0], 0),
        ([1, 3 - 1e-6, 3, 2], 2),
        ([-2, -1 - 1e-12, -1, -3], 1),
        ([1e300, 2e300, 2e300 * (1 + 1e-12), 0], 1),
    ):
        assert first_largest(torch.tensor(values, dtype=torch.float64)).item() == position
