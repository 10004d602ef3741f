"""Scores of rivals, compared with scikit-learn and with computations by hand."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics.pairwise import cosine_distances
from sklearn.preprocessing import StandardScaler

from recipes.development import rivals

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=RNG)


def test_pixel_statistics_are_numpys_and_the_rival_scikit_learns() -> None:
    images = IMAGES.clone()
    images[0] = 255
    images[0, :, :, 4:] = 3
    found = rivals.pixel_statistics(images)
    assert found.shape == (60, 17)
    grey = images[5].double().mean(0).numpy()
    along, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    expected = [grey.mean(), grey.std(ddof=1), np.sort(grey.ravel())[31], grey.min(), grey.max()]
    np.testing.assert_allclose(found[5, :9], [*expected, along.mean(), along.max(), down.mean(), down.max()])
    assert found[0, 9:11].tolist() == [0.5, 0.5]  # bright and dark
    energy = found[5, 11:13].expm1().sum()  # Parseval's, without the mean
    assert energy.item() == pytest.approx(64 * ((grey - grey.mean()) ** 2).sum())
    assert found[0, 13:].tolist() == [0, 0, 0, 0]  # no color
    scaled = StandardScaler().fit_transform(rivals.pixel_statistics(IMAGES).numpy())
    distances = rivals._mahalanobis(rivals.pixel_statistics(IMAGES))
    assert np.corrcoef(distances, LedoitWolf().fit(scaled).mahalanobis(scaled))[0, 1] > 0.9999


def test_rivals_are_scikit_learns() -> None:
    features, logits = torch.randn(60, 8, generator=RNG).exp(), 3 * torch.randn(60, 5, generator=RNG)
    seen = rivals.Seen(logits, features, rivals.pixel_statistics(IMAGES), torch.zeros(60))
    found = {question: rivals.rival_scores(seen, question) for question in rivals.RIVALS}
    assert {question: (*scores,) for question, scores in found.items()} == rivals.RIVALS
    alone = found["content"]
    unit = torch.nn.functional.normalize(features.double())
    from_mean = cosine_distances(features, unit.mean(0, keepdim=True))[:, 0]
    assert np.array_equal(alone["distance from the mean"].argsort(), from_mean.argsort())
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    torch.testing.assert_close(alone["5th neighbor"], 1 - cosines.sort(descending=True).values[:, 4])
    expected = LedoitWolf().fit(StandardScaler().fit_transform(features.double()))
    scaled = StandardScaler().fit(features.double()).transform(features.double())
    assert np.corrcoef(alone["Mahalanobis"], expected.mahalanobis(scaled))[0, 1] > 0.9999
