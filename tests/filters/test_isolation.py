"""The rule for isolated samples has few false alarms in any distribution, finds outliers, and has its invariances."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.filters.isolation import isolated_samples, isolation_borders
from lightning_anomaly.filters.pca import reduce_maps

FRACTION = 0.02


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def below_zero(share: float, normal: Callable[[], Tensor]) -> Tensor:
    return normal() - torch.special.ndtri(torch.tensor(share, dtype=torch.float64))


DISTRIBUTIONS: dict[str, Callable[[Callable[[], Tensor]], Tensor]] = {
    "Gaussian": lambda normal: normal(),
    "uniform": lambda normal: torch.special.ndtr(normal()),
    "lognormal": lambda normal: normal().exp(),
    "Student t3": lambda normal: normal() / sum(normal().square() / 3 for _ in range(3)).sqrt(),
    "exponential": lambda normal: torch.where(normal() < 1.28, 0, -torch.special.ndtr(normal()).log()),  # 90% zeros
    **{f"ReLU, {zeros}% zeros": partial(below_zero, zeros / 100) for zeros in (50, 70, 90, 95)},
}


def draw(
    name: str, filters: int, samples: int = 512, size: tuple[int, ...] = (2,), planted: int = 0, far: float = 0
) -> tuple[Tensor, Tensor]:
    """Draw points `(F, N, 2)` and extremes `(F, N, 2)` of filters with values, points or maps of a distribution.

    The first `planted` samples are `far` standard deviations away: values and points from zero along the first axis,
    0.1 standard deviations apart, and maps from their original values.
    """
    generator = torch.Generator().manual_seed(1)
    shape = filters, samples, *size
    values = DISTRIBUTIONS[name](lambda: torch.randn(shape, generator=generator, dtype=torch.float64))
    std = (values.clamp(min=0) if name.startswith("ReLU") else values).std()
    if len(size) > 1:
        values[:, :planted] += far * std
    else:
        values[:, :planted] = std / 10 * gaussian(filters, planted, *size, seed=2)
        values[:, :planted, 0] += far * std
    pixels = values.flatten(2)
    extremes = torch.stack([pixels.amax(2), pixels.amin(2)], 2)
    values = values.clamp(min=0) if name.startswith("ReLU") else values
    if len(size) > 1:
        return reduce_maps(values.transpose(0, 1)).points, extremes
    return functional.pad(values, (0, 2 - values.shape[2])), extremes


def flagged(drawn: tuple[Tensor, Tensor]) -> float:
    coordinates, extremes = drawn
    return isolated_samples(coordinates, FRACTION, extremes).any(1).double().mean().item()


def points() -> Tensor:
    found = gaussian(6, 512, 2)
    found[0, 7] = torch.tensor([9.0, 0.0])
    found[1, [3, 50, 200, 511]] = torch.tensor([[-8.0, 0.0], [0.0, 12.0], [9.0, 9.0], [30.0, 0.0]]).double()
    return found


@pytest.mark.parametrize(
    ("name", "filters", "samples", "size"),
    [
        *((name, 500, 512, (2,)) for name in DISTRIBUTIONS if name != "ReLU, 50% zeros"),
        *((name, 500, 512, (1,)) for name in ("lognormal", "exponential", "ReLU, 90% zeros")),
        *((name, 150, 512, (8, 8)) for name in ("Gaussian", "ReLU, 90% zeros")),
        ("lognormal", 150, 128, (2,)),
    ],
)
def test_at_most_one_percent_of_filters_are_false_alarms(name, filters, samples, size):
    alarms = flagged(draw(name, filters, samples, size)) * filters
    assert alarms <= 0.01 * filters + 3 * math.sqrt(0.01 * filters)  # plus three standard deviations


@pytest.mark.parametrize(
    ("name", "size", "planted", "far", "least"),
    [
        ("Gaussian", (2,), 1, 8, 0.85),
        ("Gaussian", (2,), 4, 6, 0.9),
        ("Gaussian", (2,), 10, 6, 0.9),
        ("ReLU, 70% zeros", (2,), 1, 20, 0.9),
        ("ReLU, 90% zeros", (2,), 4, 15, 0.25),
        ("ReLU, 90% zeros", (2,), 4, 30, 0.9),
        ("ReLU, 50% zeros", (8, 8), 1, 8, 0.95),
    ],
)
def test_planted_samples_are_found(name, size, planted, far, least):
    assert flagged(draw(name, 100, size=size, planted=planted, far=far)) >= least


SHAPES = (1e-9, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)  # of the tails; the first is Gaussian


def probability(row: np.ndarray, k: int, others: np.ndarray) -> float:
    """Compute the probability of a gap as wide as that behind the k outermost distances, by the tail of other gaps.

    One shape at a time, from the formulas of `isolated_samples`; distances are in descending order.
    """
    place, n = np.arange(1, len(row) // 2 + 2), others.sum()
    gaps = (place * -np.diff(row, append=0)[: len(place)])[:-1]
    log_weights, probabilities = [], []
    for h in SHAPES:
        exponent = -2 * h * np.log(place / (len(row) + 1))
        quantiles = np.sqrt(np.expm1(exponent) / h)
        means = (np.exp(exponent) / quantiles)[:-1]
        total = (gaps / means)[others].sum()
        prior = 0.75 if h == SHAPES[0] else 0.025
        log_weights.append(math.log(prior) - np.log(means[others]).sum() - n * math.log(total))
        ends = quantiles[-1] + (row[[k - 1, k]] - row[len(gaps)]) * n / total
        far, near = np.log1p(h * ends**2) / (2 * h)
        probabilities.append((1 + k * (far - near) / n) ** -n)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    return weights @ probabilities / weights.sum()


def test_a_set_of_samples_is_isolated_exactly_from_the_level_of_the_formulas_on():
    place = np.arange(1, 65)
    rows = torch.cat([draw(name, 20, 129)[0].norm(dim=2) for name in ("Gaussian", "Student t3", "lognormal")])
    for row in -np.sort(-rows.numpy()):
        for k in (1, 3):
            smaller = min(probability(row, k, place != k), probability(row, k, place > k))
            level = 2 * smaller * k * sum(1 / size for size in range(1, k + 1))
            assert isolation_borders(row[None], k, 1.001 * level) == row[k - 1]
            assert isolation_borders(row[None], k, 0.999 * level) > row[k - 1]


def test_isolated_samples_are_the_planted_ones_up_to_the_rare_fraction():
    found = isolated_samples(points(), FRACTION)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [[7], [3, 50, 200, 511], [], [], [], []]
    for samples, fraction, most in ((512, FRACTION, 10), (100, 0.07, 7), (100, 0.29, 29)):  # despite rounding
        several = gaussian(2, samples, 2)
        several[0, :most] = several[1, : most + 1] = torch.tensor([20.0, 0.0])
        assert isolated_samples(several, fraction).sum(1).tolist() == [most, 0]


def test_isolation_does_not_depend_on_order_scale_rotation_and_location():
    found = isolated_samples(points(), FRACTION)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(3))
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    assert torch.equal(isolated_samples(points()[:, order], FRACTION), found[:, order])
    for changed in (points() * 1e-12, points() * 1e12, points() @ turn, points() + 3):
        assert torch.equal(isolated_samples(changed, FRACTION), found)


@pytest.mark.parametrize("far", [1e3, 1e8, 1e10])
def test_a_sample_is_isolated_at_any_distance(far):
    found, ordinary = points(), gaussian(1, 512, 2)
    found[0, 7] *= far
    assert isolated_samples(found, FRACTION)[0].nonzero().tolist() == [[7]]
    assert isolated_samples(ordinary, FRACTION, found[:1]).nonzero().tolist() == [[0, 7]]


def test_points_beside_extremes_get_half_of_the_false_alarms():
    points = draw("Student t3", 3000, 100)[0]
    alone, beside = (isolated_samples(points, FRACTION, extremes) for extremes in (None, torch.zeros_like(points)))
    assert (alone | beside).equal(alone)
    assert 0 < beside.any(1).sum() < alone.any(1).sum()


def test_constant_and_nonfinite_extremes_are_ignored():
    extremes = torch.ones(6, 512, 2)
    extremes[3, 7] = -math.inf
    extremes[4] = math.nan
    assert torch.equal(isolated_samples(points(), FRACTION, extremes), isolated_samples(points(), FRACTION))


@pytest.mark.parametrize("samples", [0, 1, 10, 49, 50, 60])
def test_few_samples_are_not_isolated(samples):
    few = gaussian(3, samples, 2)
    found = isolated_samples(few, FRACTION, few)
    assert found.shape == (3, samples)
    assert not found.any()
    assert isolated_samples(few[:0], FRACTION).shape == (0, samples)


def test_tails_with_fewer_than_20_gaps_and_few_distinct_points_are_not_judged():
    silent = torch.zeros(4, 512, 2, dtype=torch.float64)
    silent[1, :4] = 5 + gaussian(4, 2)
    silent[2, :20], silent[3, :21] = 5 + gaussian(20, 2), 5 + gaussian(21, 2)
    silent[2:, 21, 0] = 1e8
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    few = torch.stack([places[torch.arange(512) % 2], places[(torch.arange(512) < 3) * 2]])
    assert isolated_samples(torch.cat([silent, few]), FRACTION).nonzero().tolist() == [[3, 21]]
