"""Scores of conspicuous samples, beside scikit-learn's and by hand."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from recipes.experiments.measures import scores

RNG = torch.Generator().manual_seed(0)
REFERENCE, IMAGES = torch.randn(200, 3, 5, 5, generator=RNG), torch.randn(20, 3, 5, 5, generator=RNG)


def nearest(samples: torch.Tensor | None, reference: torch.Tensor) -> np.ndarray:
    """The distance to the fifth nearest one, of the reference's own samples without themselves."""
    found = NearestNeighbors(n_neighbors=5).fit(reference.numpy())
    return found.kneighbors(None if samples is None else samples.numpy())[0][:, 4]


def test_scores_from_outputs() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = scores.output_scores(probabilities.log() + 3, torch.tensor([0, 1]))
    torch.testing.assert_close(found["confidence"], torch.tensor([0.3, 0.2], dtype=torch.float64))
    torch.testing.assert_close(found["loss"], -torch.tensor([0.7, 0.1], dtype=torch.float64).log())
    expected = torch.tensor([0.09 + 0.04 + 0.01, 0.01 + 0.81 + 0.64], dtype=torch.float64).sqrt()
    torch.testing.assert_close(found["el2n"], expected)
    torch.testing.assert_close(found["energy"], torch.tensor([-3.0, -3], dtype=torch.float64))
    margins = scores.margins(torch.tensor([[1.0, 4, 2], [3, 1, 2]]), torch.tensor([1, 2]))
    torch.testing.assert_close(margins, torch.tensor([2.0, -1]))


def test_scores_from_features() -> None:
    reference = torch.randn(60, 4, generator=RNG) + torch.arange(60)[:, None] % 3
    labels, features = torch.arange(60) % 3, torch.randn(7, 4, generator=RNG)
    found = scores.feature_scores(features, reference, labels)
    unit = torch.nn.functional.normalize(reference.double())
    np.testing.assert_allclose(found["neighbour"], nearest(torch.nn.functional.normalize(features.double()), unit))
    own = scores.feature_scores(reference, reference, labels, own=True)["neighbour"]
    np.testing.assert_allclose(own, nearest(None, unit), rtol=1e-6)
    class_means = torch.stack([reference[labels == c].double().mean(0) for c in range(3)])
    covariance = np.cov((reference.double() - class_means[labels]).numpy().T, bias=True)
    inverse = np.linalg.inv(covariance + 1e-3 * covariance.trace() / 4 * np.eye(4))
    away = (features.double()[:, None] - class_means).numpy()
    np.testing.assert_allclose(found["mahalanobis"], np.einsum("nci,ij,ncj->nc", away, inverse, away).min(1), rtol=1e-8)


def test_features_that_are_always_zero_do_not_break_the_distance() -> None:
    reference = torch.rand(40, 3, generator=RNG) * torch.tensor([1.0, 1, 0])
    far = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 5.0]])
    found = scores.feature_scores(far, reference, torch.zeros(40, dtype=torch.int64))["mahalanobis"]
    assert found[1] > 100 * found[0]


def test_pixel_scores_are_scikit_learns() -> None:
    found = scores.pixel_scores(IMAGES, REFERENCE)
    pixels, others = IMAGES.flatten(1), REFERENCE.flatten(1)
    np.testing.assert_allclose(found["pixel neighbour"], nearest(pixels, others), rtol=1e-4)
    pca = PCA(50, svd_solver="full").fit(others.numpy())
    residual = pixels.numpy() - pca.inverse_transform(pca.transform(pixels.numpy()))
    np.testing.assert_allclose(found["pixel residual"], (residual**2).sum(1), rtol=1e-3)
    own = scores.pixel_scores(REFERENCE, REFERENCE, own=True)["pixel neighbour"]
    np.testing.assert_allclose(own, nearest(None, others), rtol=1e-3)


def test_detection_is_scikit_learns_in_the_order_of_the_names() -> None:
    truth, values = torch.rand(80, generator=RNG) < 0.2, torch.randint(0, 9, (80,), generator=RNG).double()
    measures = ("auroc", "precision", "false_positives")
    found = scores.detection(truth, {"a": None, "b": values}, ("b", "missing", "a"), measures, digits=6)
    assert found["planted"] == truth.sum()
    false, true, _ = roc_curve(truth, values, drop_intermediate=False)
    expected = (roc_auc_score(truth, values), average_precision_score(truth, values), false[true >= 0.95].min())
    for measure, value in zip(measures, expected, strict=True):
        assert found[measure] == [pytest.approx(value, abs=1e-6), None, None]


def test_cleanvision_orders_images_as_they_become_issues(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def make(torchvision_dataset: list[Any], verbose: bool) -> SimpleNamespace:
        def find_issues(issues: dict[str, Any], n_jobs: int, verbose: bool) -> None:
            asked.update(issues)

        assert [picture.mode for (picture,) in torchvision_dataset] == ["RGB"] * 3
        columns = {"dark": [1.0, 0.16, 1.0], "light": [1.0, 1.0, 1.0], "blurry": [1.0, 1.0, 0.29]}
        frame = pd.DataFrame({f"{name}_score": values for name, values in columns.items()})
        return SimpleNamespace(find_issues=find_issues, issues=frame.assign(low_information_score=0.6))

    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setitem(sys.modules, "cleanvision", None)
    assert scores.cleanvision_scores(images) is None
    module = ModuleType("cleanvision")
    module.Imagelab = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cleanvision", module)
    found = scores.cleanvision_scores(images)
    assert found is not None
    assert found.tolist() == pytest.approx([-2, -0.5, -1])
    assert asked["dark"] == {"threshold": 0.32}
