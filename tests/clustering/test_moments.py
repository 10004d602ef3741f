"""Sizes, parameters and the index of clusters are NumPy's and scikit-learn's."""

import numpy as np
import oracle
import properties
import pytest
import torch
import zoo

from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.moments import calinski_harabasz, cluster_parameters, cluster_sizes

AUTO = load_engine("auto")


def labels_of(points: torch.Tensor, *numbers: int) -> torch.Tensor:
    """Random labels `(F, M, N)` with these numbers of clusters."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(k, points.shape[:2], generator=generator) for k in numbers], 1)


@pytest.mark.parametrize("samples", [10, 200])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_the_index_is_scikit_learn_s_within_1e_12(kind, samples):
    points = zoo.points(kind, 4, samples)
    labels = labels_of(points, 2, 3, 8)
    labels = torch.cat([labels, 3 * labels[:, :1] + 2], 1)  # clusters 2 and 5, the others empty
    index = calinski_harabasz(points, labels, AUTO.cluster_moments)
    for f in range(4):
        for m in range(4):
            expected = oracle.calinski_harabasz(points[f].numpy(), labels[f, m].numpy())
            assert index[f, m].item() == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_shift_of_the_points_leaves_the_index():
    points = zoo.points("skewed", 3, 100)
    labels = labels_of(points, 2, 5)
    shifted = calinski_harabasz(points + 1000, labels, AUTO.cluster_moments)
    torch.testing.assert_close(shifted, calinski_harabasz(points, labels, AUTO.cluster_moments), rtol=1e-11, atol=0)


def test_the_index_is_0_where_it_is_not_defined():
    points = torch.tensor([[[0.0, 0], [0, 0], [1, 0], [1, 0]]], dtype=torch.float64)
    labels = torch.tensor([[[0, 0, 0, 0], [3, 3, 3, 3], [0, 1, 2, 3]]])
    assert calinski_harabasz(points, labels, AUTO.cluster_moments).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("name", ["torch", "numba", "sklearn"])
def test_the_index_of_clusters_of_equal_points_is_large_whatever_the_order_of_the_samples(name):
    engine = load_engine(name)
    member = torch.tensor([0] * 300 + [1] * 208 + [2] * 4)
    points, labels = zoo.points("clustered", 20, 3)[:, member], member.expand(20, 1, -1)
    orders = [torch.randperm(512, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    # scikit-learn's is 1 for some and 1e34 for others, as rounding has it
    for order in orders:
        index = engine.calinski_harabasz(points[:, order], labels[..., order])
        torch.testing.assert_close(index, torch.full_like(index, 509 / 2 * 1e18), rtol=1e-9, atol=0)


def test_the_index_of_nearly_perfect_clusters_is_finite():
    points = torch.tensor([[[-1.0, 0], [-1, 1e-160], [1, 0], [1, -1e-160]]], dtype=torch.float64)
    assert calinski_harabasz(points, torch.tensor([[[0, 0, 1, 1]]]), AUTO.cluster_moments).isfinite().all()


def test_sizes_count_the_samples_of_every_cluster():
    labels = torch.tensor([[[0, 0, 2], [1, 1, 1]]])
    assert cluster_sizes(labels).tolist() == [[[2, 0, 1], [0, 3, 0]]]
    assert cluster_sizes(torch.zeros(0, 2, 5, dtype=torch.int64)).shape == (0, 2, 0)


@pytest.mark.parametrize("n_components", [2, 5])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_cluster_parameters_are_the_clusters_shares_means_and_inverse_covariances(kind, n_components):
    points = zoo.points(kind, 3, 90)
    labels = torch.stack([(torch.arange(90) * step) % n_components for step in (1, 3)]).expand(3, 2, 90)
    weights, means, precisions = cluster_parameters(points, labels, n_components, 1e-2, AUTO.cluster_moments)
    for index in range(3):
        for start in range(2):
            expected = oracle.cluster_parameters(points[index].numpy(), labels[0, start].numpy(), n_components, 1e-2)
            for found, value in zip((weights, means, precisions), expected, strict=True):
                np.testing.assert_allclose(found[index, start].numpy(), value, rtol=1e-9, atol=1e-12)


def test_an_empty_cluster_gets_finite_parameters():
    points = zoo.points("clustered", 1, 20)
    weights, means, precisions = cluster_parameters(
        points, torch.zeros(1, 1, 20, dtype=torch.int64), 3, 1e-6, AUTO.cluster_moments
    )
    assert all(tensor.isfinite().all() for tensor in (weights, means, precisions))
    assert (weights[0, 0, 1:] < 1e-15).all()
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_batched_equals_one_at_a_time(kind, engine):
    points = zoo.points(kind, 7, 120)
    labels = labels_of(points, 2, 5)
    properties.assert_batched_equals_one_at_a_time(
        lambda *own: [calinski_harabasz(*own, engine.cluster_moments)], points, labels
    )
