"""Directions are scikit-learn's principal components of the selected vectors, for every number and length of them."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from lightning_anomaly.outliers import directions
from lightning_anomaly.outliers.directions import Vectors


@pytest.fixture(params=["few", "many"], autouse=True)
def algorithm(request, monkeypatch) -> None:
    """Run each test with both algorithms, whatever the number of vectors."""
    monkeypatch.setattr(directions, "_MAX_PRODUCTS", {"few": 10**6, "many": 0}[request.param])


def drawn(samples: int, values: int, seed: int = 0) -> Tensor:
    noise = torch.randn(samples, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * torch.logspace(0, -1, values) + 1


@pytest.mark.parametrize(("samples", "values"), [(300, 7), (300, 64), (100, 64)])
def test_squared_distances_are_those_of_scikit_learn_s_whitened_components(samples, values):
    rows, every = drawn(samples, values), torch.arange(samples)
    whitened = PCA(min(10, values), whiten=True).fit_transform(rows.numpy())
    theirs = np.square(whitened).sum(1) * samples / (samples - 1)  # scikit-learn divides by N - 1
    vectors = Vectors(rows)
    directly, by_directions = vectors.mahalanobis_squared(every, 10), vectors.directions(every, 10)
    for ours in (directly, by_directions.mahalanobis_squared(rows.float())):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0.02 if values > 24 else 1e-4)


@pytest.mark.parametrize(("samples", "values"), [(300, 64), (40, 100), (9, 3)])
def test_directions_are_fitted_to_the_selected_vectors_alone(samples, values):
    vectors = drawn(samples, values).float()
    some = torch.randperm(samples, generator=torch.Generator().manual_seed(1))[: samples // 2]
    squared = Vectors(vectors).mahalanobis_squared(some, 10)
    expected = Vectors(vectors[some]).directions(torch.arange(len(some)), 10).mahalanobis_squared(vectors)
    torch.testing.assert_close(squared, expected, rtol=1e-4, atol=1e-4)


def test_constant_vectors_have_no_directions():
    vectors = drawn(60, 3)[:, [0, 1, 1, 0, 2, 2, 2]]
    assert Vectors(vectors).directions(torch.arange(60), 10).axes.shape == (7, 3)
    assert Vectors(torch.ones(60, 7)).mahalanobis_squared(torch.arange(30), 10).tolist() == [0] * 60
