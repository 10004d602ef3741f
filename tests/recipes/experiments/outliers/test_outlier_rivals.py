"""What else scores images that do not belong, beside scikit-learn's and by hand."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from recipes.experiments.outliers import rivals

RNG = torch.Generator().manual_seed(0)
REFERENCE, IMAGES = torch.randn(200, 3, 5, 5, generator=RNG), torch.randn(20, 3, 5, 5, generator=RNG)


def test_pixel_scores_are_scikit_learns() -> None:
    found = rivals.pixel_scores(IMAGES, REFERENCE)
    pixels, others = IMAGES.flatten(1).numpy(), REFERENCE.flatten(1).numpy()
    distances, _ = NearestNeighbors(n_neighbors=5).fit(others).kneighbors(pixels)
    np.testing.assert_allclose(found["pixel neighbour"], distances[:, 4], rtol=1e-4)
    pca = PCA(50, svd_solver="full").fit(others)
    residual = pixels - pca.inverse_transform(pca.transform(pixels))
    np.testing.assert_allclose(found["pixel residual"], (residual**2).sum(1), rtol=1e-3)


def test_no_image_of_the_reference_is_its_own_neighbour() -> None:
    found = rivals.pixel_scores(REFERENCE, REFERENCE, own=True)
    others = REFERENCE.flatten(1).numpy()
    distances, _ = NearestNeighbors(n_neighbors=5).fit(others).kneighbors()  # of the fitted ones, not themselves
    np.testing.assert_allclose(found["pixel neighbour"], distances[:, 4], rtol=1e-3)

    labels = torch.arange(200) % 3
    features = REFERENCE.flatten(1)
    scores = rivals.network_scores(features, features[:, :3], labels, features, labels, own=True)
    unit = torch.nn.functional.normalize(features).numpy()
    distances, _ = NearestNeighbors(n_neighbors=5).fit(unit).kneighbors()
    np.testing.assert_allclose(scores["neighbour"], distances[:, 4], rtol=1e-3)


def test_network_scores_are_larger_for_what_does_not_belong() -> None:
    reference, labels = REFERENCE.flatten(1), torch.arange(200) % 3
    features = torch.cat([reference[:10], reference[:10] + 20])
    logits = torch.tensor([[9.0, 0, 0]] * 10 + [[0.1, 0, 0]] * 10)
    given = torch.tensor([0] * 20)
    found = rivals.network_scores(features, logits, given, reference, labels)
    for name in ("confidence", "loss", "energy", "mahalanobis", "forest"):
        assert found[name][10:].min() > found[name][:10].max(), name
    torch.testing.assert_close(found["energy"], -logits.double().logsumexp(1))
    forest = IsolationForest(random_state=0).fit(reference.numpy())
    np.testing.assert_array_equal(found["forest"], -forest.score_samples(features.numpy()))


def test_cleanvision_orders_images_as_they_become_issues(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def make(torchvision_dataset: list[Any], verbose: bool) -> SimpleNamespace:
        def find_issues(issues: dict[str, Any], n_jobs: int, verbose: bool) -> None:
            asked.update(issues)

        assert [picture.mode for (picture,) in torchvision_dataset] == ["RGB"] * 3
        scores = {"dark": [1.0, 0.16, 1.0], "light": [1.0, 1.0, 1.0], "blurry": [1.0, 1.0, 0.29]}
        frame = pd.DataFrame({f"{name}_score": values for name, values in scores.items()})
        return SimpleNamespace(find_issues=find_issues, issues=frame.assign(low_information_score=0.6))

    module = ModuleType("cleanvision")
    module.Imagelab = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cleanvision", module)
    found = rivals.cleanvision_scores(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert found is not None
    assert found.tolist() == pytest.approx([-2, -0.5, -1])
    assert asked["dark"] == {"threshold": 0.32}


def test_without_cleanvision_there_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanvision", None)
    assert rivals.cleanvision_scores(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)) is None


def test_real_cleanvision_takes_dark_and_blank_images_first() -> None:
    pytest.importorskip("cleanvision")
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=RNG)
    images[2] = 3
    found = rivals.cleanvision_scores(images)
    assert found is not None
    assert found.argmax() == 2
    assert found[2] > -1  # it is an issue by CleanVision's own threshold
