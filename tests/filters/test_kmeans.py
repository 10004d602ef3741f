"""k-means is scikit-learn's from the same centers, and draws depend on a filter's points alone."""

import numpy as np
import oracle
import pytest
import torch
import zoo

from lightning_anomaly.filters.mixtures import draw_centers, kmeans


@pytest.mark.parametrize("n_clusters", [2, 3, 5])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_kmeans_is_scikit_learn_s_best_clustering_from_the_same_centers(kind, n_clusters):
    points = zoo.points(kind, 3, 120)
    centers = draw_centers(points, 6, n_clusters, seed=0)
    labels = kmeans(points, centers)
    assert labels.shape == (3, 120)
    for index in range(3):
        expected, inertia = oracle.best_kmeans(points[index].numpy(), centers[index].numpy())
        clusters = [points[index][labels[index] == k] for k in range(n_clusters)]
        found = sum(((cluster - cluster.mean(0)) ** 2).sum().item() for cluster in clusters if len(cluster))
        assert found == pytest.approx(inertia.min(), rel=1e-9, abs=1e-12)
        assert np.array_equal(labels[index].numpy(), expected)


def test_the_best_start_wins_on_a_lattice_too():
    """A stage in single precision, whose ties went the other way, once chose another one."""
    points = torch.randint(-2, 3, (10, 300, 2), generator=torch.Generator().manual_seed(0)).double()[9:]
    centers = draw_centers(points, 20, 3, seed=0)
    expected, _ = oracle.best_kmeans(points[0].numpy(), centers[0].numpy())
    assert np.array_equal(kmeans(points, centers)[0].numpy(), expected)


def test_a_cluster_without_points_keeps_its_center_and_may_win_some_later():
    points = torch.tensor([[[-4.0, 0], [0, 0], [4, 0]]], dtype=torch.float64)
    centers = torch.tensor([[[[-3.5, 0], [3, 0], [5.5, 0]]]], dtype=torch.float64)  # the second moves to 2
    assert kmeans(points, centers).tolist() == [[0, 1, 2]]


def test_ties_go_to_the_first_center_and_to_the_first_start():
    points = torch.tensor([[[-1.0, 0], [0, 0], [1, 0]]], dtype=torch.float64)
    centers = torch.tensor([[[[-1.0, 0], [1, 0]], [[1, 0], [-1, 0]]]], dtype=torch.float64)
    assert kmeans(points, centers).tolist() == [[0, 0, 1]]


def test_kmeans_plus_plus_repeats_a_point_only_after_all_distinct_ones():
    points = torch.tensor([[[0.0, 0]] * 30 + [[1, 0], [0, 1], [5, 5]]], dtype=torch.float64)
    for start in draw_centers(points, 50, 4, seed=0)[0].tolist():
        assert len({tuple(center) for center in start}) == 4
    # fewer distinct points than centers
    assert draw_centers(points[:, :30], 2, 4, seed=0).tolist() == [[[[0.0, 0]] * 4] * 2]


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance():
    # Given that the first center is the origin, the second is the point at distance 3, not 1, in 9 of 10 draws.
    points = torch.tensor([[[0.0, 0], [1, 0], [0, 3]]], dtype=torch.float64)
    first, second = draw_centers(points, 20000, 2, seed=0)[0].unbind(1)
    at_origin = (first == 0).all(1)
    assert at_origin.double().mean().item() == pytest.approx(1 / 3, abs=0.015)
    assert (second[at_origin, 1] == 3).double().mean().item() == pytest.approx(0.9, abs=0.015)
