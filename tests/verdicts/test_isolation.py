"""The rule for isolated samples: few false alarms in any distribution, outliers found, and nothing else matters."""

import math

import pytest
import torch

from lightning_anomaly.verdicts.isolation import isolated_samples
from recipes.experiments.null import DISTRIBUTIONS, NULLS, Planted, draw, flagged

FRACTION = 0.02


def gaussian(filters: int, samples: int, seed: int = 0) -> torch.Tensor:
    return draw("Gaussian", filters, samples, seed, "points")[0]


def points(seed: int = 0, filters: int = 6, samples: int = 512) -> torch.Tensor:
    """Gaussian filters, the first two of them with outliers."""
    found = gaussian(filters, samples, seed)
    found[0, 7] = torch.tensor([9.0, 0.0])
    found[1, [3, 50, 200, 511]] = torch.tensor([[-8.0, 0.0], [0.0, 12.0], [9.0, 9.0], [30.0, 0.0]]).double()
    return found


@pytest.mark.parametrize(("kind", "name"), [case for case in NULLS if case[0] != "maps"])
def test_at_most_one_filter_in_a_hundred_is_a_false_alarm(kind, name):
    # 1% of 500 filters and three standard deviations of the count
    assert flagged(draw(name, 500, 512, 1, kind), "isolated") * 500 <= 5 + 3 * math.sqrt(5)


@pytest.mark.parametrize("name", ["Gaussian", "ReLU, 90% zeros"])
def test_false_alarms_of_maps_are_as_rare(name):
    assert flagged(draw(name, 150, 512, 1, "maps"), "isolated") * 150 <= 1.5 + 3 * math.sqrt(1.5)


@pytest.mark.parametrize("samples", [128, 2048])
def test_false_alarms_with_other_numbers_of_samples(samples):
    # With 128 samples a t distribution cannot be told from a Gaussian one well enough: there, up to 3%.
    for name in ("lognormal", "ReLU, 90% zeros"):
        assert flagged(draw(name, 150, samples, 1, "points"), "isolated") <= 0.04


def test_of_many_filters_with_the_heaviest_tail_as_many_are_false_alarms_as_is_documented():
    """Between the nominal share and twice that, which a few hundred cannot tell."""
    found = [isolated_samples(draw("Student t3", 2000, 512, seed, "points")[0], FRACTION) for seed in (1, 2)]
    assert 0.005 <= torch.cat(found).any(1).double().mean().item() <= 0.01


@pytest.mark.parametrize(
    ("planted", "least"),
    [
        (Planted("Gaussian", 1, 8), 0.85),
        (Planted("Gaussian", 4, 6), 0.9),
        (Planted("Gaussian", 10, 6), 0.9),
        (Planted("ReLU, 70% zeros", 1, 20), 0.9),
        (Planted("ReLU, 90% zeros", 4, 15), 0.25),
        (Planted("ReLU, 90% zeros", 4, 30), 0.9),
        (Planted("ReLU, 50% zeros", 1, 8, kind="maps"), 0.95),
    ],
)
def test_planted_samples_are_found(planted, least):
    found = draw(planted.name, 100, 512, 2, planted.kind, planted)
    assert flagged(found, "isolated") >= least


def test_the_default_flags_sparse_filters_and_the_paper_heavy_tails_which_is_why_there_is_another_rule():
    sparse = draw("ReLU, 90% zeros", 60, 512, 1, "values")
    assert flagged(sparse, "default") == pytest.approx(0.9, abs=0.1)
    assert flagged(sparse, "isolated") == 0
    heavy = draw("Student t3", 60, 512, 1, "points")
    assert flagged(heavy, "paper") == pytest.approx(0.7, abs=0.15)
    assert flagged(heavy, "isolated") <= 0.05


def test_the_samples_set_apart_are_the_planted_ones():
    found = isolated_samples(points(), FRACTION)
    assert [own.nonzero()[:, 0].tolist() for own in found] == [[7], [3, 50, 200, 511], [], [], [], []]


def test_the_largest_set_is_the_rare_fraction():
    several = gaussian(2, 512)
    several[0, :10] = torch.tensor([20.0, 0.0])
    several[1, :11] = torch.tensor([20.0, 0.0])
    assert isolated_samples(several, FRACTION).sum(1).tolist() == [10, 0]


def test_order_scale_rotation_and_place_do_not_matter():
    found = isolated_samples(points(), FRACTION)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(3))
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    assert torch.equal(isolated_samples(points()[:, order], FRACTION), found[:, order])
    for changed in (points() * 1e-12, points() * 1e12, points() @ turn, points() + 3):
        assert torch.equal(isolated_samples(changed, FRACTION), found)


def test_a_filter_alone_is_judged_as_in_the_batch():
    many, extremes = map(torch.cat, zip(*(draw(name, 4, 200, 4, "points") for name in DISTRIBUTIONS), strict=True))
    for other in (None, extremes):
        alone = [
            isolated_samples(many[i : i + 1], 0.05, None if other is None else other[i : i + 1])
            for i in range(len(many))
        ]
        assert torch.equal(torch.cat(alone), isolated_samples(many, 0.05, other))


def test_extremes_see_what_the_points_do_not_in_any_scale_of_either():
    extremes = gaussian(3, 512, 1)
    extremes[1, 30, 0], extremes[2, 100, 1] = 12, -12
    for scales in ([1, 1], [1e6, 1e-6]):
        found = isolated_samples(gaussian(3, 512), FRACTION, extremes * torch.tensor(scales) + 5)
        assert found.nonzero().tolist() == [[1, 30], [2, 100]]


@pytest.mark.parametrize("far", [1e3, 1e8, 1e10])
def test_a_sample_is_set_apart_however_far_out_it_is(far):
    found, ordinary = points(), gaussian(1, 512)
    found[0, 7] *= far
    assert isolated_samples(found, FRACTION)[0].nonzero().tolist() == [[7]]
    assert isolated_samples(ordinary, FRACTION, found[:1]).nonzero().tolist() == [[0, 7]]


def test_extremes_that_are_the_same_or_not_finite_tell_nothing():
    extremes = torch.ones(6, 512, 2)
    extremes[3, 7] = -math.inf
    extremes[4] = math.nan
    assert torch.equal(isolated_samples(points(), FRACTION, extremes), isolated_samples(points(), FRACTION))


@pytest.mark.parametrize("samples", [0, 1, 2, 10, 49, 50, 60])
def test_few_samples_are_not_judged_or_judged_without_complaint(samples):
    few = gaussian(3, samples)
    found = isolated_samples(few, FRACTION, few)
    assert found.shape == (3, samples)
    assert not found.any()
    assert isolated_samples(few[:0], FRACTION).shape == (0, samples)


def test_filters_with_few_active_samples_or_points_in_a_few_places_are_not_judged():
    silent = torch.zeros(4, 512, 2, dtype=torch.float64)
    for own, active in zip(silent, (0, 1, 4, 15), strict=True):
        own[:active] = 5 + gaussian(1, 15)[0, :active]
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    few = torch.stack([places[torch.arange(512) % 2], places[(torch.arange(512) < 3) * 2]])
    assert not isolated_samples(torch.cat([silent, few]), FRACTION).any()
