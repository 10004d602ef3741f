"""k-means is scikit-learn's from the same centres, and draws depend on a filter's points alone."""

import numpy as np
import oracle
import pytest
import torch
import zoo

from lightning_anomaly.filters.mixtures import kmeans_plus_plus


@pytest.mark.parametrize("n_clusters", [2, 3, 5])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_kmeans_is_scikit_learn_s_best_clustering_from_the_same_centres(kind, n_clusters, engine):
    points = zoo.points(kind, 3, 120)
    centres = kmeans_plus_plus(points, 6, n_clusters, seed=0, engine=engine)
    labels = engine.kmeans(points, centres)
    assert labels.shape == (3, 120)
    for index in range(3):
        expected, inertia = oracle.best_kmeans(points[index].numpy(), centres[index].numpy())
        clusters = [points[index][labels[index] == k] for k in range(n_clusters)]
        found = sum(((cluster - cluster.mean(0)) ** 2).sum().item() for cluster in clusters if len(cluster))
        assert found == pytest.approx(inertia.min(), rel=1e-9, abs=1e-12)
        assert np.array_equal(labels[index].numpy(), expected)


def test_the_best_start_wins_on_a_lattice_too(engine):
    """A stage in single precision, whose ties went the other way, once chose another one."""
    points = torch.randint(-2, 3, (10, 300, 2), generator=torch.Generator().manual_seed(0)).double()[9:]
    centres = kmeans_plus_plus(points, 20, 3, seed=0, engine=engine)
    expected, _ = oracle.best_kmeans(points[0].numpy(), centres[0].numpy())
    assert np.array_equal(engine.kmeans(points, centres)[0].numpy(), expected)


def test_a_cluster_without_points_keeps_its_centre_and_may_win_some_later(engine):
    points = torch.tensor([[[-4.0, 0], [0, 0], [4, 0]]], dtype=torch.float64)
    centres = torch.tensor([[[[-3.5, 0], [3, 0], [5.5, 0]]]], dtype=torch.float64)  # the second moves to 2
    assert engine.kmeans(points, centres).tolist() == [[0, 1, 2]]


def test_ties_go_to_the_first_centre_and_to_the_first_start(engine):
    points = torch.tensor([[[-1.0, 0], [0, 0], [1, 0]]], dtype=torch.float64)
    centres = torch.tensor([[[[-1.0, 0], [1, 0]], [[1, 0], [-1, 0]]]], dtype=torch.float64)
    assert engine.kmeans(points, centres).tolist() == [[0, 0, 1]]


def test_kmeans_plus_plus_repeats_a_point_only_after_all_distinct_ones(engine):
    points = torch.tensor([[[0.0, 0]] * 30 + [[1, 0], [0, 1], [5, 5]]], dtype=torch.float64)
    for start in kmeans_plus_plus(points, 50, 4, seed=0, engine=engine)[0].tolist():
        assert len({tuple(centre) for centre in start}) == 4
    # fewer distinct points than centres
    assert kmeans_plus_plus(points[:, :30], 2, 4, seed=0, engine=engine).tolist() == [[[[0.0, 0]] * 4] * 2]


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance(engine):
    # Given that the first centre is the origin, the second is the point at distance 3, not 1, in 9 of 10 draws.
    points = torch.tensor([[[0.0, 0], [1, 0], [0, 3]]], dtype=torch.float64)
    first, second = kmeans_plus_plus(points, 20000, 2, seed=0, engine=engine)[0].unbind(1)
    at_origin = (first == 0).all(1)
    assert at_origin.double().mean().item() == pytest.approx(1 / 3, abs=0.015)
    assert (second[at_origin, 1] == 3).double().mean().item() == pytest.approx(0.9, abs=0.015)


def test_draws_depend_on_the_seed_and_not_on_global_state(engine):
    points = zoo.points("clustered", 2, 40)
    state = torch.get_rng_state()
    first = kmeans_plus_plus(points, 5, 4, seed=0, engine=engine)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(kmeans_plus_plus(points, 5, 4, seed=0, engine=engine), first)
    assert not torch.equal(kmeans_plus_plus(points, 5, 4, seed=1, engine=engine), first)
    for index in range(2):
        samples = {tuple(sample) for sample in points[index].tolist()}
        for start in first[index].tolist():
            assert len({tuple(centre) for centre in start} & samples) == 4


def test_draws_do_not_depend_on_the_order_of_the_samples_even_on_a_lattice(engine):
    generator = torch.Generator().manual_seed(0)
    lattice = torch.randint(-2, 3, (4, 60, 2), generator=generator).double()  # many equal first coordinates
    for points in (lattice, zoo.points("sparse", 4, 60), zoo.points("skewed", 4, 60)):
        shuffled = points[:, torch.randperm(60, generator=generator)]
        first, second = (kmeans_plus_plus(values, 8, 5, seed=0, engine=engine) for values in (points, shuffled))
        assert torch.equal(first, second)
