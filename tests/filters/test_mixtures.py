"""The EM is scikit-learn's GaussianMixture, the index its Calinski-Harabasz index, and the choice follows the index."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
import zoo
from torch import Tensor

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.filters.layer_report import first_largest
from lightning_anomaly.filters.mixtures import (
    MixtureFit,
    calinski_harabasz,
    cluster_filters,
    cluster_parameters,
    fit_mixtures,
)

FEW = {"n_init": 4}


def fit(points: Tensor, weights: Tensor, means: Tensor, precisions: Tensor, **options: float) -> MixtureFit:
    return fit_mixtures(points, (weights, means, torch.from_numpy(oracle.factors(precisions.numpy()))), **options)


def case(kind: str, n_components: int, samples: int = 200, **options: float) -> tuple:
    points = zoo.points(kind, 3, samples)
    rows = points.numpy()
    starts = [oracle.random_start(row, n_components, seed=f) for f, row in enumerate(rows)]
    expected = [oracle.fit_mixture(row, *start, **options) for row, start in zip(rows, starts, strict=True)]
    start = tuple(torch.tensor(np.array(part)) for part in zip(*starts, strict=True))
    return points, start, expected


@pytest.mark.parametrize("samples", [40, 200, 513])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_a_fit_is_scikit_learn_s(kind, samples):
    # Within 1e-10; nearly singular ones within 1e-6, because of the oracle's rounding.
    for n_components in (2, 3, 5, 8):
        points, start, expected = case(kind, n_components, samples)
        found = fit(points, *start)
        for f, expected_fit in enumerate(expected):
            oracle.assert_equal_fit(found, f, expected_fit, 1e-6 if kind == "tied" else 1e-10)


@pytest.mark.parametrize(
    "options", [{"max_iter": 1}, {"max_iter": 2}, {"tol": 1e-6, "max_iter": 400}, {"tol": 0.1}, {"reg_covar": 0.1}]
)
def test_iterations_tolerance_and_regularization_are_scikit_learn_s(options):
    points, start, expected = case("skewed", 4, **options)
    found = fit(points, *start, **options)
    for f, expected_fit in enumerate(expected):
        oracle.assert_equal_fit(found, f, expected_fit)
    assert found.converged.all() == (options.get("max_iter", 100) > 2)


def test_a_tight_cluster_far_out_keeps_its_precision():
    # Sums of squared coordinates would give a variance of 1e-6 an error of 1e-16 * 1e8 = 1e-8.
    points = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[:, :10] = 1e4 + 1e-3 * points[:, :10]
    weights, _, precisions = (torch.tensor(part)[None] for part in oracle.random_start(points[0].numpy(), 2, seed=0))
    means = torch.tensor([[[1e4, 1e4], [0, 0]]], dtype=torch.float64)
    found = fit(points, weights, means, precisions)
    tight = points[0, :10] - points[0, :10].mean(0)
    assert found.labels[0].tolist() == [0] * 10 + [1] * 90
    truth = tight.T @ tight / 10 + 1e-6 * torch.eye(2)
    np.testing.assert_allclose(oracle.covariances(found.factors.numpy())[0, 0], truth.numpy(), rtol=1e-8)


def test_an_empty_component_is_scikit_learn_s():
    points = zoo.points("clustered", 1, 50)
    means = torch.tensor([[[-1.0, 0], [1, 0], [1e3, 1e3]]]).double()
    start = torch.full((1, 3), 1 / 3).double(), means, torch.eye(2).double().expand(1, 3, 2, 2).clone()
    expected = oracle.fit_mixture(points[0].numpy(), *(part[0].numpy() for part in start))
    assert expected.weights[2] < 1e-10
    oracle.assert_equal_fit(fit(points, *start), 0, expected)


def test_the_label_is_the_first_of_equally_probable_components():
    points, start, _ = case("clustered", 3)
    weights, means, precisions = (part[:, [0, 1, 0, 1, 2]] for part in start)
    found = fit(points, weights / weights.sum(1, keepdim=True), means, precisions)
    assert torch.equal(found.means[:, :2], found.means[:, 2:4])
    assert found.labels.unique().tolist() == [0, 1, 4]


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_cluster_parameters_are_the_clusters_shares_means_and_inverse_covariances(kind):
    points = zoo.points(kind, 2, 90)
    for n_components in (2, 5):
        labels = (torch.arange(90) % n_components).expand(2, 90)
        weights, means, factors = cluster_parameters(points, labels, n_components, 1e-2)
        found = weights, means, torch.from_numpy(oracle.precisions(factors.numpy()))
        for f in range(2):
            expected = oracle.cluster_parameters(points[f].numpy(), labels[f].numpy(), n_components, 1e-2)
            for part, value in zip(found, expected, strict=True):
                np.testing.assert_allclose(part[f].numpy(), value, rtol=1e-9, atol=1e-12)


def test_an_empty_cluster_gets_finite_parameters():
    points = zoo.points("clustered", 1, 20)
    weights, means, factors = cluster_parameters(points, torch.zeros(1, 20, dtype=torch.int64), 3)
    assert all(part.isfinite().all() for part in (weights, means, factors))
    assert (weights[0, 1:] < 1e-15).all()
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("samples", [10, 200])
@pytest.mark.parametrize("kind", zoo.KINDS)
def test_the_index_is_scikit_learn_s_within_1e_12(kind, samples):
    points, generator = zoo.points(kind, 3, samples), torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randint(k, points.shape[:2], generator=generator) for k in (2, 3, 8)], 1)
    labels = torch.cat([labels, 3 * labels[:, :1] + 2], 1)  # clusters 2 and 5, the others empty
    index, shifted = (calinski_harabasz(values, labels) for values in (points, points + 1000))
    torch.testing.assert_close(shifted, index, rtol=1e-9, atol=0)
    for f in range(3):
        for m in range(4):
            expected = oracle.calinski_harabasz(points[f].numpy(), labels[f, m].numpy())
            assert index[f, m].item() == pytest.approx(expected, rel=1e-12, abs=0)


def test_an_undefined_index_is_0():
    points = torch.tensor([[[0.0, 0], [0, 0], [1, 0], [1, 0]]], dtype=torch.float64)
    labels = torch.tensor([[[0, 0, 0, 0], [3, 3, 3, 3], [0, 1, 2, 3]]])
    assert calinski_harabasz(points, labels).tolist() == [[0, 0, 0]]


def test_the_index_of_clusters_of_equal_points_is_large_in_any_order_of_the_samples():
    # scikit-learn's is 1 for some orders and 1e34 for others, because of rounding.
    member = torch.tensor([0] * 300 + [1] * 208 + [2] * 4)
    points, labels = zoo.points("clustered", 20, 3)[:, member], member.expand(20, 1, -1)
    for seed in range(3):
        order = torch.randperm(512, generator=torch.Generator().manual_seed(seed))
        index = calinski_harabasz(points[:, order], labels[..., order])
        torch.testing.assert_close(index, torch.full_like(index, 509 / 2 * 1e18), rtol=1e-9, atol=0)
    nearly = torch.tensor([[[-1.0, 0], [-1, 1e-160], [1, 0], [1, -1e-160]]], dtype=torch.float64)
    assert calinski_harabasz(nearly, torch.tensor([[[0, 0, 1, 1]]])).isfinite().all()


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_labels_and_choice_are_scikit_learn_s(kind):
    points = zoo.points(kind, 3, 100)
    settings = AnalysisSettings(n_init=3, max_components=4)
    ours, theirs = (cluster_filters(points, replace(settings, engine=each)) for each in ("numba", "sklearn"))
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(first_largest(ours.calinski_harabasz), first_largest(theirs.calinski_harabasz))
    torch.testing.assert_close(ours.calinski_harabasz, calinski_harabasz(points, ours.labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ["numba", "sklearn"])
@pytest.mark.parametrize(
    ("filters", "samples", "numbers"),
    [(2, 1, [0]), (2, 2, [0]), (2, 3, [2]), (2, 5, [2, 3, 4]), (2, 9, [2, 3, 4, 5]), (0, 20, [2, 3, 4, 5])],
)
def test_fewer_samples_allow_fewer_components(engine, filters, samples, numbers):
    points = torch.randn(filters, samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clustering = cluster_filters(points, AnalysisSettings(**FEW, engine=engine))
    assert clustering.n_components.tolist() == numbers
    assert clustering.labels.shape == (filters, len(numbers), samples)
    assert clustering.calinski_harabasz.shape == (filters, len(numbers))
