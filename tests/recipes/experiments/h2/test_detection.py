"""Scores of conspicuous samples, against scikit-learn and by hand."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from recipes.experiments.h2.detection import (
    SCORES,
    detection,
    feature_scores,
    margins,
    output_scores,
)


def test_scores_from_outputs() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    found = output_scores(probabilities.log() + 3, labels)
    torch.testing.assert_close(found["confidence"], torch.tensor([0.3, 0.2], dtype=torch.float64))
    torch.testing.assert_close(found["loss"], -torch.tensor([0.7, 0.1], dtype=torch.float64).log())
    expected = torch.tensor([0.09 + 0.04 + 0.01, 0.01 + 0.81 + 0.64], dtype=torch.float64).sqrt()
    torch.testing.assert_close(found["el2n"], expected)
    torch.testing.assert_close(
        margins(torch.tensor([[1.0, 4, 2], [3, 1, 2]]), torch.tensor([1, 2])), torch.tensor([2.0, -1])
    )


def test_scores_from_features() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(60, 4, generator=generator) + torch.arange(60)[:, None] % 3
    labels, features = torch.arange(60) % 3, torch.randn(7, 4, generator=generator)
    found = feature_scores(features, reference, labels)
    unit = reference.double() / reference.double().norm(dim=1, keepdim=True)
    nearest = NearestNeighbors(n_neighbors=5).fit(unit.numpy())
    distances, _ = nearest.kneighbors((features.double() / features.double().norm(dim=1, keepdim=True)).numpy())
    np.testing.assert_allclose(found["neighbour"], distances[:, 4], rtol=1e-6)
    class_means = torch.stack([reference[labels == c].double().mean(0) for c in range(3)])
    centred = (reference.double() - class_means[labels]).numpy()
    covariance = np.cov(centred.T, bias=True)
    inverse = np.linalg.inv(covariance + 1e-3 * covariance.trace() / 4 * np.eye(4))
    away = (features.double()[:, None] - class_means).numpy()
    np.testing.assert_allclose(found["mahalanobis"], np.einsum("nci,ij,ncj->nc", away, inverse, away).min(1), rtol=1e-8)


def test_features_that_are_always_zero_do_not_break_the_distance() -> None:
    reference = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0])
    far = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 5.0]])
    found = feature_scores(far, reference, torch.zeros(40, dtype=torch.int64))["mahalanobis"]
    assert found[1] > 100 * found[0]


def test_detection_is_in_the_order_of_the_scores() -> None:
    truth = torch.tensor([False, False, True, True])
    scores: dict[str, Tensor | None] = dict.fromkeys(SCORES, torch.zeros(4))
    scores |= {"loss": torch.tensor([0.0, 1, 2, 3]), "gradient": torch.tensor([3.0, 2, 1, 0]), "aum": None}
    found = detection(truth, scores)
    assert found["auroc"] == [0.5, 0.5, 1.0, 0.0, 0.5, None, 0.5, 0.5]
    assert found["precision"][:4] == [0.5, 0.5, 1.0, round((1 / 3 + 2 / 4) / 2, 3)]
