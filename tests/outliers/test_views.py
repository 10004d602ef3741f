"""The views of pixels and classes, and their combination: right for what is known, and not moved by outliers."""

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf, ledoit_wolf
from sklearn.preprocessing import PowerTransformer
from torch import Tensor, nn

from lightning_anomaly.capture.pixels import pixel_statistics
from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import Tail, combine
from lightning_anomaly.outliers.mahalanobis import (
    RobustGaussian,
    _most_normal_powers,
    _yeo_johnson,
    shrunk_covariance,
)
from lightning_anomaly.outliers.views import view_samples


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(samples: int, seed: int = 0) -> Tensor:
    mix = torch.randn(6, 6, generator=rng(99), dtype=torch.float64)
    return torch.randn(samples, 6, generator=rng(seed), dtype=torch.float64) @ mix


def test_distances_are_those_of_scikit_learn_in_numbers_as_normal_as_it_makes_them():
    values = correlated(4000).mul(0.3).exp()
    standard = ((values - values.mean(0)) / values.std(0, correction=0)).numpy()
    power = PowerTransformer(standardize=False).fit(standard)
    transformed = power.transform(standard)
    expected = LedoitWolf().fit(transformed).mahalanobis(transformed)
    model = RobustGaussian.fit(values)
    assert model is not None
    found = model.mahalanobis_squared(values).numpy()
    ranks, oracle_ranks = (np.argsort(np.argsort(own)) for own in (found, expected))
    assert np.corrcoef(ranks, oracle_ranks)[0, 1] > 0.97
    assert np.median(found) == pytest.approx(np.median(expected), rel=0.15)  # its scale is that of the inliers
    powers = PowerTransformer(standardize=False).fit(standard[:100])
    far, lambdas = torch.tensor(torch.inf), torch.from_numpy(powers.lambdas_)
    found = _yeo_johnson(torch.from_numpy(standard), lambdas, -far, far)
    np.testing.assert_allclose(found, powers.transform(standard), rtol=1e-9)


def test_powers_are_those_of_scikit_learn_also_far_from_1():
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
    for own in (centered, torch.zeros_like(centered)):
        expected, _ = ledoit_wolf(own.numpy(), assume_centered=True)
        np.testing.assert_allclose(shrunk_covariance(own), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_outliers_that_are_alike_do_not_hide_themselves(share):
    values, count = correlated(500), int(500 * share)
    values[:count] = values[:count] * 0.1 + 12 * torch.randn(6, generator=rng(5), dtype=torch.float64)
    model = RobustGaussian.fit(values)
    assert model is not None
    distances = model.mahalanobis_squared(values)
    assert set(distances.argsort(descending=True)[:count].tolist()) == set(range(count))


def test_numbers_that_do_not_vary_are_left_out_and_samples_with_nan_are_infinitely_far():
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


def test_tail_probabilities_are_shares_and_go_on_as_an_exponential():
    scores = -torch.rand(20_000, generator=rng(), dtype=torch.float64).log()
    tail = Tail.fit(scores)
    for level in (0.5, 1.5, 6.0, 40.0):  # of exponential scores the negative logarithm is the score itself
        assert tail.surprise(torch.tensor([level])).item() == pytest.approx(level, rel=0.05)
    far = tail.surprise(torch.tensor([99.0, 1e3, 1e30])).tolist()  # beyond 100 only the order stays
    assert far == sorted(far)
    assert far[2] < 200
    few = Tail.fit(torch.arange(10.0))
    assert few.surprise(torch.tensor([-1.0, 4.5, 5.0])).tolist() == pytest.approx(
        [0, math.log(11 / 6), math.log(11 / 6)]
    )
    assert few.surprise(torch.tensor([math.inf])).item() == math.inf
    assert Tail.fit(torch.zeros(9)).surprise(torch.tensor([0.0, math.inf])).tolist() == [0, math.inf]
    spoilt = torch.cat([scores[:950], torch.full((50,), 1e6, dtype=torch.float64)])  # a twentieth does not move it much
    assert Tail.fit(spoilt).surprise(torch.tensor([6.0])).item() == pytest.approx(6, rel=0.35)


def test_the_image_counts_as_much_as_all_that_the_network_says():
    views = {name: torch.tensor([value, 1.0]) for name, value in (("pixels", 4.0), ("filters", 6.0), ("classes", 1.0))}
    assert combine(views).tolist() == [7.5, 2]
    assert combine({name: views[name] for name in ("pixels", "filters")}).tolist() == [10, 2]
    assert combine({"filters": views["filters"]}).tolist() == [6, 1]
    assert combine({"pixels": views["pixels"]}).tolist() == [4, 1]


def test_a_view_names_what_is_odd():
    coarse = torch.rand(200, 3, 4, 4, generator=rng())
    x = nn.functional.interpolate(coarse, size=16, mode="bilinear") + 0.05 * torch.rand(
        200, 3, 16, 16, generator=rng(1)
    )
    x[7] *= 0.2
    x[30] += 3
    features = torch.randn(200, 20, generator=rng(2))
    features[50] *= 6
    logits = 3 * torch.randn(200, 4, generator=rng(3))
    logits[60] = torch.tensor([-20.0, -20, -19, -20])
    views = view_samples(SampleStatistics(pixel_statistics(x), (3, 16, 16), features, logits))
    pixels, classes = views["pixels"], views["classes"]
    assert set(pixels.scores.argsort(descending=True)[:2].tolist()) == {7, 30}
    assert pixels.reasons[30] == "brighter than the rest"
    assert pixels.reasons[7] in ("darker than the rest", "low contrast")
    assert set(classes.scores.argsort(descending=True)[:2].tolist()) == {50, 60}
    assert classes.reasons[50] == f"predicted class {logits[50].argmax()} from unusual features"
    assert classes.reasons[60] == "small logits for every class, of which class 2 has the largest"
    named = SampleStatistics(None, (), features, logits, ("cat", "dog", "hen", "pig"))
    assert view_samples(named)["classes"].reasons[60] == "small logits for every class, of which hen has the largest"
    assert view_samples(SampleStatistics()) == {}
    given = SampleStatistics(features=features, logits=logits)
    assert [[*view_samples(given.select(slice(count)))] for count in (39, 40)] == [[], ["classes"]]
    assert view_samples(given._replace(logits=logits * math.nan)) == {}
    assert view_samples(given._replace(features=torch.ones(200, 20))) == {}
    logits[:3], logits[:, 3] = math.nan, -math.inf  # some that are unknown, and a class that is masked
    assert view_samples(given)["classes"].scores.isinf().nonzero()[:, 0].tolist() == [0, 1, 2]
