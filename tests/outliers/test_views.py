"""The views of pixels and classes, and their combination: right for what is known, and not moved by outliers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf, ledoit_wolf
from sklearn.preprocessing import PowerTransformer
from torch import Tensor, nn

from lightning_anomaly.capture.pixels import pixel_statistics
from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import Tail, combine
from lightning_anomaly.outliers.feature_views import ClassGaussians
from lightning_anomaly.outliers.mahalanobis import RobustGaussian, _most_normal_powers, _yeo_johnson, shrunk_covariance
from lightning_anomaly.outliers.views import view_samples


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(samples: int, seed: int = 0) -> Tensor:
    mix = torch.randn(6, 6, generator=rng(99), dtype=torch.float64)
    return torch.randn(samples, 6, generator=rng(seed), dtype=torch.float64) @ mix


def test_distances_are_those_of_scikit_learn_after_its_power_transform():
    values = correlated(4000).mul(0.3).exp()
    standard = ((values - values.mean(0)) / values.std(0, correction=0)).numpy()
    power = PowerTransformer(standardize=False).fit(standard)
    transformed = power.transform(standard)
    expected = LedoitWolf().fit(transformed).mahalanobis(transformed)
    model = RobustGaussian.fit(values)
    assert model is not None
    squared = model.mahalanobis_squared(values).numpy()
    assert spearmanr(squared, expected).statistic > 0.97
    assert np.median(squared) == pytest.approx(np.median(expected), rel=0.15)  # its scale is that of the inliers
    powers = PowerTransformer(standardize=False).fit(standard[:100])
    far, lambdas = torch.tensor(torch.inf), torch.from_numpy(powers.lambdas_)
    found = _yeo_johnson(torch.from_numpy(standard), lambdas, -far, far)
    np.testing.assert_allclose(found, powers.transform(standard), rtol=1e-9)


def test_powers_are_those_of_scikit_learn_even_far_from_1():
    normal = torch.randn(300, 1, generator=rng(), dtype=torch.float64)
    values = torch.cat([normal, normal.exp(), -(2 * normal).exp(), normal.round(), normal**5, (normal > 2) + 0.0], 1)
    standard = (values - values.mean(0)) / values.std(0, correction=0)
    theirs = PowerTransformer(standardize=False).fit(standard.numpy()).lambdas_
    np.testing.assert_allclose(_most_normal_powers(standard).numpy(), theirs, rtol=1e-5)


@pytest.mark.parametrize("numbers", [1, 6])
@pytest.mark.parametrize("samples", [4, 500])
def test_a_shrunk_covariance_is_that_of_scikit_learn(samples, numbers):
    values = correlated(samples)[:, :numbers]
    centered = values - values.mean(0)
    for matrix in (centered, torch.zeros_like(centered)):
        expected, _ = ledoit_wolf(matrix.numpy(), assume_centered=True)
        np.testing.assert_allclose(shrunk_covariance(matrix), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_similar_outliers_are_the_farthest(share):
    values, count = correlated(500), int(500 * share)
    values[:count] = values[:count] * 0.1 + 12 * torch.randn(6, generator=rng(5), dtype=torch.float64)
    model = RobustGaussian.fit(values)
    assert model is not None
    distances = model.mahalanobis_squared(values)
    assert set(distances.argsort(descending=True)[:count].tolist()) == set(range(count))


def test_constant_numbers_are_left_out_and_samples_with_nan_are_infinitely_far():
    values = correlated(100)
    expected = RobustGaussian.fit(values)
    wide = torch.cat([values, torch.full((100, 1), 7.0)], 1)
    wide[3, 0] = math.nan
    model = RobustGaussian.fit(wide)
    assert model is not None
    assert expected is not None
    assert model.used.tolist() == [True] * 6 + [False]
    distances = model.mahalanobis_squared(wide)
    assert distances.isinf().nonzero()[:, 0].tolist() == [3]
    for nothing in (torch.ones(50, 3), values[:7], torch.full((50, 2), math.inf)):
        assert RobustGaussian.fit(nothing) is None
    mostly_equal = torch.cat([torch.zeros(60, 6, dtype=torch.float64), correlated(40)])
    model = RobustGaussian.fit(mostly_equal)
    assert model is not None
    distances = model.mahalanobis_squared(mostly_equal)
    assert distances.isfinite().all()
    assert distances[60:].median() > distances[0]


def test_tail_probabilities_are_shares_and_beyond_the_data_exponential():
    scores = -torch.rand(20_000, generator=rng(), dtype=torch.float64).log()
    tail = Tail.fit(scores)
    for level in (0.5, 1.5, 6.0, 40.0):  # of exponential scores the negative logarithm is the score itself
        assert tail.surprise(torch.tensor([level])).item() == pytest.approx(level, rel=0.05)
    far = tail.surprise(torch.tensor([99.0, 1e3, 1e30])).tolist()  # beyond 100 only the order stays
    assert far == sorted(far)
    assert far[2] < 200
    few = Tail.fit(torch.arange(10.0))
    assert few.surprise(torch.tensor([-1.0, 4.5, 5.0])).tolist() == pytest.approx(
        [0, math.log(11 / 6.5), math.log(11 / 6)]
    )
    assert few.surprise(torch.tensor([math.inf])).item() == math.inf
    assert Tail.fit(torch.zeros(9)).surprise(torch.tensor([0.0, math.inf])).tolist() == [0, math.inf]
    spoilt = torch.cat([scores[:950], torch.full((50,), 1e6, dtype=torch.float64)])  # 5% change it only a little
    assert Tail.fit(spoilt).surprise(torch.tensor([6.0])).item() == pytest.approx(6, rel=0.35)


def test_views_are_combined_and_filters_count_only_without_classes():
    given = {"pixels": 4.0, "features": 1.0, "logits": 3.0, "filters": 6.0}
    views = {name: torch.tensor([value, 1.0]) for name, value in given.items()}

    def norm(*values: float) -> float:
        return sum(value**1.5 for value in values) ** (2 / 3)

    def score(*names: str) -> list[float]:
        return combine({name: views[name] for name in names}).tolist()

    assert combine(views).tolist() == pytest.approx([norm(4, 1, 3), norm(1, 1, 1)])
    assert score("pixels", "features", "logits") == combine(views).tolist()
    assert score("pixels", "filters") == pytest.approx([norm(4, 6), norm(1, 1)])
    assert score("filters") == [6, 1]
    alone, both = combine({"pixels": torch.tensor([9.0, 0.0]), "logits": torch.tensor([0.0, 9.0])}), norm(5, 5)
    assert alone.tolist() == pytest.approx([9, 9])  # one strong view counts for more than two weak ones
    assert 5 < both < 9


def test_views_find_odd_samples_and_give_reasons():
    coarse = torch.rand(200, 3, 4, 4, generator=rng())
    x = nn.functional.interpolate(coarse, size=16, mode="bilinear") + 0.05 * torch.rand(
        200, 3, 16, 16, generator=rng(1)
    )
    x[7] *= 0.2
    x[30] += 3
    means = torch.eye(20)[:4] * 8
    known = torch.arange(200) % 4
    features = means[known] + torch.randn(200, 20, generator=rng(2))
    features[50] = -8 * torch.eye(20)[10]  # like no class
    logits = 9 * torch.eye(4)[known] + torch.randn(200, 4, generator=rng(3))
    logits[60] = torch.tensor([-20.0, -20, -19, -20])
    views = view_samples(SampleStatistics(pixel_statistics(x), (3, 16, 16), features, logits))
    pixels = views["pixels"]
    assert set(pixels.scores.argsort(descending=True)[:2].tolist()) == {7, 30}
    assert pixels.reasons[30] == "brighter than the rest"
    assert pixels.reasons[7] in ("darker than the rest", "low contrast")
    for name, place in (("features", 50), ("logits", 60)):
        assert views[name].scores.argmax() == place
        assert f"predicted class {logits[place].argmax()}" in views[name].reasons[place]
    named = SampleStatistics(None, (), features, logits, ("cat", "dog", "hen", "pig"))
    assert "predicted hen" in view_samples(named)["logits"].reasons[60]
    assert view_samples(SampleStatistics()) == {}
    given = SampleStatistics(features=features, logits=logits)
    assert view_samples(given.select(slice(39))) == {}
    assert [*view_samples(given.select(slice(40)))] == ["features", "logits"]
    assert view_samples(given._replace(logits=logits * math.nan)) == {}
    assert view_samples(given._replace(features=torch.ones(200, 20))) == {}
    logits[:3], logits[:, 3] = math.nan, -math.inf  # some that are unknown, and a class that is masked
    assert view_samples(given)["logits"].scores.isinf().nonzero()[:, 0].tolist() == [0, 1, 2]


def test_distances_of_features_are_those_of_scikit_learn():
    """For one class without outliers, a Mahalanobis distance under Ledoit and Wolf's covariance."""
    vectors = torch.randn(300, 8, generator=rng(4), dtype=torch.float64) @ torch.randn(8, 8, generator=rng(5)).double()
    mean = vectors.mean(0, keepdim=True)
    fitted = ClassGaussians.of(vectors - mean, mean)
    expected = LedoitWolf().fit(vectors.numpy()).mahalanobis(vectors.numpy())
    torch.testing.assert_close(fitted.mahalanobis_squared(vectors), torch.from_numpy(expected))


def test_wide_features_with_many_classes_have_finite_scores():
    features, logits = torch.randn(150, 600, generator=rng(6)), torch.randn(150, 100, generator=rng(7))
    features[3] *= -9
    features[3, :300] += 40
    views = view_samples(SampleStatistics(features=features, logits=logits))
    assert [*views] == ["features", "logits"]  # no class has enough samples for a distance of its own
    assert views["features"].scores.isfinite().all()


def test_pixel_scores_do_not_depend_on_the_unit_and_a_constant_that_changes_is_odd():
    """Only 6 of 16 numbers were once used for EEG in volts, and a red image among grey ones was not odd."""
    coarse = nn.functional.interpolate(torch.randn(300, 1, 4, 4, generator=rng(8)), size=16, mode="bilinear")
    x = coarse.sigmoid() + 0.02 * torch.randn(300, 1, 16, 16, generator=rng(9))

    def scores(images: Tensor) -> Tensor:
        return view_samples(SampleStatistics(pixel_statistics(images), tuple(images.shape[1:])))["pixels"].scores

    for unit in (1e-6, 255.0):
        torch.testing.assert_close(scores(x * unit), scores(x), rtol=1e-3, atol=1e-3)
    grey = x.expand(-1, 3, -1, -1).clone()
    grey[5, 1:] *= 0.9
    assert scores(grey).argmax() == 5
    expected = pixel_statistics(255 * x)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(pixel_statistics(255 * x), expected)
