"""The batched EM is scikit-learn's GaussianMixture, mixture by mixture."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import oracle
import properties
import pytest
import torch
import zoo
from torch import Tensor

from lightning_anomaly.clustering.em import MixtureFit, fit_mixtures
from lightning_anomaly.clustering.engines import _torch_em, load_engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters

TORCH = load_engine("torch")
PARAMETERS = ["weights", "means", "covariances", "lower_bound"]
FIELDS = [*PARAMETERS, "labels", "n_iter", "converged"]
FILTERS, STARTS, SAMPLES = 3, 2, 200


class Case(NamedTuple):
    points: Tensor
    start: tuple[Tensor, Tensor, Tensor]
    expected: list[list[oracle.Fit]]


def case(kind: str, n_components: int, **options: float) -> Case:
    points = zoo.points(kind, FILTERS, SAMPLES)
    starts = [
        [oracle.random_start(own.numpy(), n_components, seed=10 * f + s) for s in range(STARTS)]
        for f, own in enumerate(points)
    ]
    expected = [
        [oracle.fit_mixture(own.numpy(), *start, **options) for start in own_starts]
        for own, own_starts in zip(points, starts, strict=True)
    ]
    start = tuple(torch.tensor(np.array([[s[i] for s in own] for own in starts])) for i in range(3))
    return Case(points, start, expected)


def assert_equal_fits(fit: MixtureFit, expected: list[list[oracle.Fit]], tolerance: float) -> None:
    for f, own in enumerate(expected):
        for s, reference in enumerate(own):
            for name in PARAMETERS:
                difference = np.abs(getattr(fit, name)[f, s].numpy() - getattr(reference, name)).max()
                assert difference <= tolerance, (name, f, s, difference)
            assert np.array_equal(fit.labels[f, s].numpy(), reference.labels)
            assert fit.n_iter[f, s].item() == reference.n_iter
            assert fit.converged[f, s].item() == reference.converged


def fields(fit: MixtureFit) -> list[Tensor]:
    return [getattr(fit, name) for name in FIELDS]


@pytest.mark.parametrize("n_components", range(2, 9))
@pytest.mark.parametrize("kind", ["clustered", "skewed", "sparse"])
def test_a_fit_is_scikit_learn_s_within_1e_10(kind, n_components, engine):
    points, start, expected = case(kind, n_components)
    assert_equal_fits(fit_mixtures(points, *start, engine), expected, 1e-10)


@pytest.mark.parametrize("n_components", range(2, 9))
def test_a_nearly_singular_fit_is_scikit_learn_s_within_1e_6(n_components, engine):
    points, start, expected = case("tied", n_components)
    assert_equal_fits(fit_mixtures(points, *start, engine), expected, 1e-6)


@pytest.mark.parametrize("kind", ["clustered", "skewed", "sparse"])
def test_a_fit_that_is_cut_short_is_scikit_learn_s_too(kind, engine):
    for max_iter in (1, 2, 5):
        points, start, expected = case(kind, 3, max_iter=max_iter)
        fit = fit_mixtures(points, *start, engine, max_iter=max_iter)
        assert_equal_fits(fit, expected, 1e-10)
        assert not fit.converged.all()


def test_tolerance_and_regularisation_are_scikit_learn_s(engine):
    for options in ({"tol": 1e-6, "max_iter": 400}, {"tol": 0.1}, {"reg_covar": 0.1}):
        points, start, expected = case("skewed", 4, **options)
        assert_equal_fits(fit_mixtures(points, *start, engine, **options), expected, 1e-10)


def test_a_tight_cluster_far_out_loses_no_digits(engine):
    # Sums of squared coordinates would leave 1e-16 * 1e8 = 1e-8 of a variance of 1e-6.
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 100, 2, generator=generator, dtype=torch.float64)
    points[:, :10] = 1e4 + 1e-3 * points[:, :10]
    starts = [oracle.random_start(points[0].numpy(), 2, seed=0)]
    weights, means, precisions = (torch.tensor(part)[None, None] for part in starts[0])
    means[0, 0] = torch.tensor([[1e4, 1e4], [0, 0]])
    expected = oracle.fit_mixture(points[0].numpy(), weights[0, 0].numpy(), means[0, 0].numpy(), starts[0][2])
    fit = fit_mixtures(points, weights, means, precisions, engine)
    tight = points[0, :10] - points[0, :10].mean(0)
    truth = tight.T @ tight / 10 + 1e-6 * torch.eye(2)
    assert fit.labels[0, 0].tolist() == expected.labels.tolist() == [0] * 10 + [1] * 90
    torch.testing.assert_close(fit.covariances[0, 0, 0], truth, rtol=1e-8, atol=0)


def test_a_component_that_no_sample_belongs_to_is_scikit_learn_s(engine):
    points = zoo.points("clustered", 1, 50)
    weights, precisions = torch.full((1, 1, 3), 1 / 3).double(), torch.eye(2).double().expand(1, 1, 3, 2, 2).clone()
    means = torch.tensor([[[[-1.0, 0], [1, 0], [1e3, 1e3]]]]).double()
    start = (weights, means, precisions)
    expected = oracle.fit_mixture(points[0].numpy(), *(tensor[0, 0].numpy() for tensor in start))
    assert expected.weights[2] < 1e-10
    fit = fit_mixtures(points, *start, engine)
    assert_equal_fits(fit, [[expected]], 1e-10)


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_batched_equals_one_at_a_time(kind, engine):
    for samples, n_components in ((37, 5), (200, 2), (513, 8)):
        points = zoo.points(kind, 7, samples)
        centres = kmeans_plus_plus(points, 2, n_components, seed=0, engine=engine)
        labels = torch.stack([engine.kmeans(points, centres[:, [s]]) for s in range(2)], 1)
        start = cluster_parameters(points, labels, n_components, 1e-6, engine.cluster_moments)
        properties.assert_batched_equals_one_at_a_time(
            lambda *tensors: fields(fit_mixtures(*tensors, engine)), points, *start
        )
        whole = fit_mixtures(points, *start, engine)
        second = fit_mixtures(points, *(tensor[:, 1:] for tensor in start), engine)
        assert all(torch.equal(a[:, 1:], b) for a, b in zip(fields(whole), fields(second), strict=True))


def test_batched_equals_one_at_a_time_with_two_threads(two_threads, engine):
    for samples, n_components in ((20, 2), (300, 5)):
        points = zoo.points("sparse", 8, samples)
        labels = engine.kmeans(points, kmeans_plus_plus(points, 2, n_components, seed=0, engine=engine))[:, None]
        start = cluster_parameters(points, labels, n_components, 1e-6, engine.cluster_moments)
        properties.assert_batched_equals_one_at_a_time(
            lambda *tensors: fields(fit_mixtures(*tensors, engine)), points, *start
        )


def test_chunk_size_changes_nothing(monkeypatch):
    points, start, _ = case("skewed", 5)
    whole = fit_mixtures(points, *start, TORCH)
    for size in (1, 2**14, 2**15, 2**24):
        monkeypatch.setattr(_torch_em, "_CHUNK_BYTES", size)
        chunked = fit_mixtures(points, *start, TORCH)
        assert all(torch.equal(a, b) for a, b in zip(fields(whole), fields(chunked), strict=True))


def test_both_engines_agree():
    for kind in zoo.KINDS:
        points, start, _ = case(kind, 4)
        plain, fast = (fit_mixtures(points, *start, load_engine(name)) for name in ("torch", "numba"))
        for name in PARAMETERS:
            tolerance = 1e-6 if kind == "tied" else 1e-10
            torch.testing.assert_close(getattr(plain, name), getattr(fast, name), rtol=0, atol=tolerance)
        for name in ("labels", "n_iter", "converged"):
            assert torch.equal(getattr(plain, name), getattr(fast, name))


def test_permuting_components_permutes_labels(engine):
    points, start, _ = case("clustered", 4)
    order = torch.tensor([2, 0, 3, 1])
    before = fit_mixtures(points, *start, engine)
    after = fit_mixtures(points, *(tensor[:, :, order] for tensor in start), engine)
    assert torch.equal(order[after.labels], before.labels)
    torch.testing.assert_close(after.means, before.means[:, :, order], rtol=0, atol=1e-10)


def test_of_equally_probable_components_the_first_is_the_label(engine):
    points, start, _ = case("clustered", 3)
    weights, means, precisions = (tensor[:, :, [0, 1, 0, 1, 2]] for tensor in start)
    fit = fit_mixtures(points, weights / weights.sum(2, keepdim=True), means, precisions, engine)
    assert torch.equal(fit.means[:, :, :2], fit.means[:, :, 2:4])
    assert fit.labels.unique().tolist() == [0, 1, 4]


def test_more_iterations_never_lower_the_bound(engine):
    for kind in ("clustered", "skewed", "sparse"):
        points, start, _ = case(kind, 4)
        bounds = [fit_mixtures(points, *start, engine, max_iter=n, tol=0).lower_bound for n in range(1, 30)]
        # The regularisation of the variances is outside of the bound: it may cost what is left at convergence.
        assert all((after - before).min() > -1e-4 for before, after in pairwise(bounds))


def test_the_arguments_are_left_alone(engine):
    points, start, _ = case("clustered", 3)
    before = [tensor.clone() for tensor in (points, *start)]
    fit_mixtures(points, *start, engine)
    assert all(torch.equal(a, b) for a, b in zip((points, *start), before, strict=True))


def test_no_filters_give_an_empty_fit(engine):
    points, start, _ = case("clustered", 3)
    fit = fit_mixtures(points[:0], *(tensor[:0] for tensor in start), engine)
    assert fit.labels.shape == (0, STARTS, SAMPLES)
    assert fit.covariances.shape == (0, STARTS, 3, 2, 2)
