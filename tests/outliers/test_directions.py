"""Directions are scikit-learn's principal components of the selected vectors, be they few or many, short or long."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from lightning_anomaly.outliers import directions
from lightning_anomaly.outliers.directions import Vectors


@pytest.fixture(params=["few", "many"], autouse=True)
def way(request, monkeypatch) -> None:
    """Both ways, whatever the number of vectors."""
    monkeypatch.setattr(directions, "_MAX_PRODUCTS", {"few": 10**6, "many": 0}[request.param])


def drawn(samples: int, values: int, seed: int = 0) -> Tensor:
    noise = torch.randn(samples, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * torch.logspace(0, -1, values) + 1


@pytest.mark.parametrize(("samples", "values"), [(300, 7), (300, 64), (100, 64)])
def test_lengths_are_scikit_learn_s_whitened_components(samples, values):
    vectors, every = drawn(samples, values), torch.arange(samples)
    whitened = PCA(min(10, values), whiten=True).fit_transform(vectors.numpy())
    theirs = np.square(whitened).sum(1) * samples / (samples - 1)  # scikit-learn divides by N - 1
    own = Vectors(vectors)
    for ours in (own.mahalanobis_squared(every, 10), own.directions(every, 10).mahalanobis_squared(vectors.float())):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0.02 if values > 24 else 1e-4)


@pytest.mark.parametrize(("samples", "values"), [(300, 64), (40, 100), (9, 3)])
def test_lengths_are_those_of_the_directions_of_some(samples, values):
    vectors = drawn(samples, values).float()
    some = torch.randperm(samples, generator=torch.Generator().manual_seed(1))[: samples // 2]
    found = Vectors(vectors).mahalanobis_squared(some, 10)
    own = Vectors(vectors[some]).directions(torch.arange(len(some)), 10)
    torch.testing.assert_close(found, own.mahalanobis_squared(vectors), rtol=1e-4, atol=1e-4)


def test_where_nothing_varies_there_is_no_direction():
    vectors = drawn(60, 3)[:, [0, 1, 1, 0, 2, 2, 2]]
    assert Vectors(vectors).directions(torch.arange(60), 10).axes.shape == (7, 3)
    assert Vectors(torch.ones(60, 7)).mahalanobis_squared(torch.arange(30), 10).tolist() == [0] * 60
