"""Starts: k-means is scikit-learn's from the same centres, and draws belong to a filter's points alone."""

from functools import partial

import numpy as np
import oracle
import properties
import pytest
import torch
import zoo

from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus, random_samples
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.clustering.ties import nearest

AUTO = load_engine("auto")
DRAWS = [partial(kmeans_plus_plus, engine=AUTO), random_samples]


@pytest.mark.parametrize("n_clusters", [2, 3, 5])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_kmeans_is_scikit_learn_s_best_clustering_from_the_same_centres(kind, n_clusters, engine):
    points = zoo.points(kind, 4, 120)
    centres = kmeans_plus_plus(points, 6, n_clusters, seed=0, engine=engine)
    labels = engine.kmeans(points, centres)
    assert labels.shape == (4, 120)
    for index in range(4):
        expected, inertia = oracle.best_kmeans(points[index].numpy(), centres[index].numpy())
        own = [points[index][labels[index] == k] for k in range(n_clusters)]
        found = sum(((part - part.mean(0)) ** 2).sum().item() for part in own if len(part))
        assert found == pytest.approx(inertia.min(), rel=1e-9, abs=1e-12)
        assert np.array_equal(labels[index].numpy(), expected)


def test_both_engines_give_the_same_clusterings_on_maps_of_a_trained_network(trained):
    with torch.no_grad():
        maps = trained.model[:5](trained.probe)
    reduction = reduce_maps(maps, AUTO)
    points = reduction.points[reduction.live]
    for n_clusters in (2, 5):
        centres = kmeans_plus_plus(points, 10, n_clusters, seed=0, engine=AUTO)
        plain, fast = (load_engine(name).kmeans(points, centres) for name in ("torch", "numba"))
        assert torch.equal(plain, fast)


def test_a_cluster_that_loses_its_points_keeps_its_centre(engine):
    points = torch.tensor([[[0.0, 0], [0, 1], [10, 0], [10, 1]]], dtype=torch.float64)
    centres = torch.tensor([[[[0.0, 0.5], [10, 0.5], [100, 100]]]], dtype=torch.float64)
    assert engine.kmeans(points, centres).tolist() == [[0, 0, 1, 1]]


def test_equal_distances_go_to_the_first_centre_and_equal_clusterings_to_the_first_start(engine):
    points = torch.tensor([[[-1.0, 0], [0, 0], [1, 0]]], dtype=torch.float64)
    centres = torch.tensor([[[[-1.0, 0], [1, 0]], [[1, 0], [-1, 0]]]], dtype=torch.float64)
    assert engine.kmeans(points, centres).tolist() == [[0, 0, 1]]
    assert nearest(points, centres).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_kmeans_leaves_its_arguments_alone(engine):
    points = zoo.points("skewed", 2, 40)
    centres = random_samples(points, 3, 4, seed=0)
    before = points.clone(), centres.clone()
    engine.kmeans(points, centres)
    assert torch.equal(points, before[0])
    assert torch.equal(centres, before[1])


@pytest.mark.parametrize("draw", DRAWS)
def test_centres_are_distinct_samples_wherever_there_are_enough(draw):
    for kind in ("clustered", "skewed"):
        points = zoo.points(kind, 3, 50)
        centres = draw(points, 20, 5, seed=1)
        assert centres.shape == (3, 20, 5, 2)
        for index in range(3):
            samples = {tuple(sample) for sample in points[index].tolist()}
            for start in centres[index].tolist():
                assert len({tuple(centre) for centre in start} & samples) == 5


def test_kmeans_plus_plus_takes_every_distinct_point_before_it_repeats_one():
    points = torch.tensor([[[0.0, 0]] * 30 + [[1, 0], [0, 1], [5, 5]]], dtype=torch.float64)
    for start in kmeans_plus_plus(points, 50, 4, seed=0, engine=AUTO)[0].tolist():
        assert len({tuple(centre) for centre in start}) == 4
    # and with fewer points than centres it gives what there is
    assert kmeans_plus_plus(points[:, :30], 2, 4, seed=0, engine=AUTO).tolist() == [[[[0.0, 0]] * 4] * 2]


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance():
    # From the origin, 1 and 3 away: the second centre lies at 3 in 9 of 10 draws, given that the first is the origin.
    points = torch.tensor([[[0.0, 0], [1, 0], [0, 3]]], dtype=torch.float64)
    centres = kmeans_plus_plus(points, 20000, 2, seed=0, engine=AUTO)[0]
    first, second = centres.unbind(1)
    at_origin = (first == 0).all(1)
    assert at_origin.double().mean().item() == pytest.approx(1 / 3, abs=0.015)
    assert (second[at_origin, 1] == 3).double().mean().item() == pytest.approx(0.9, abs=0.015)


def test_the_first_of_the_random_samples_are_those_of_a_shorter_draw():
    points = zoo.points("clustered", 2, 40)
    assert torch.equal(random_samples(points, 5, 6, seed=3)[:, :, :4], random_samples(points, 5, 4, seed=3))


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_depend_on_the_seed_and_on_no_global_state(draw):
    points = zoo.points("clustered", 2, 40)
    state = torch.get_rng_state()
    first = draw(points, 5, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(draw(points, 5, 3, seed=0), first)
    assert not torch.equal(draw(points, 5, 3, seed=1), first)


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_do_not_depend_on_the_order_of_the_samples_not_even_on_a_lattice(draw):
    generator = torch.Generator().manual_seed(0)
    lattice = torch.randint(-2, 3, (4, 60, 2), generator=generator).double()  # many equal first coordinates
    for points in (lattice, zoo.points("sparse", 4, 60), zoo.points("skewed", 4, 60)):
        order = torch.randperm(60, generator=generator)
        assert torch.equal(draw(points[:, order], 8, 5, seed=0), draw(points, 8, 5, seed=0))


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_batched_equals_one_at_a_time(kind, engine):
    for samples, n_clusters in ((37, 5), (200, 3)):
        points = zoo.points(kind, 7, samples)
        for draw in (partial(kmeans_plus_plus, engine=engine), random_samples):
            properties.assert_batched_equals_one_at_a_time(lambda p: [draw(p, 4, n_clusters, seed=0)], points)  # noqa: B023
        centres = random_samples(points, 4, n_clusters, seed=0)
        properties.assert_batched_equals_one_at_a_time(lambda p, c: [engine.kmeans(p, c)], points, centres)
        labels = nearest(points, centres)
        properties.assert_batched_equals_one_at_a_time(lambda p, c: [nearest(p, c)], points, centres)
        properties.assert_batched_equals_one_at_a_time(
            lambda p, found: cluster_parameters(p, found, n_clusters, 1e-6, engine.cluster_moments),  # noqa: B023
            points,
            labels,
        )
