"""How far the ratio of expected errors has risen, and how sure that is."""

import math

import pytest
import torch
from torch import Tensor

from lightning_anomaly.two_sample.confidence import error_ratio
from lightning_anomaly.two_sample.rise import CERTAIN, ErrorRise, rise_over, standard_error


def added(ratios: list[float], rise: ErrorRise | None = None, n: int = 50) -> list[float]:
    """The rises, where all images are alike."""
    rise, errors = rise or ErrorRise(), torch.full((n,), 0.1)
    return [rise.add(errors, errors * ratio) for ratio in ratios]


def test_a_level_is_a_mean_of_three_and_the_rise_is_over_the_lowest_whenever_that_was() -> None:
    rises = added([1.5, 1.5, 1.56, 1.47, 1.5, 1.5, 1.53, 1.53, 1.53])
    assert rises[:2] == [0, 0]
    assert rises[-1] == pytest.approx(1.53 / 1.49 - 1, rel=1e-4)
    assert added([1.5, 1.2, 1.1, 0.8])[-1] == 0


def test_what_is_saved_goes_on_and_other_images_begin_anew() -> None:
    first = ErrorRise()
    added([1.0, 1.0, 1.0, 1.3], first)
    resumed = ErrorRise()
    resumed.load_state_dict(first.state_dict())
    assert added([1.6], resumed) == added([1.6], first) == pytest.approx([0.3])
    fresh = ErrorRise()
    fresh.load_state_dict(ErrorRise().state_dict())
    assert added([1.0, 1.0, 1.3], fresh)[-1] == 0
    assert added([1.9, 1.9, 1.9], resumed, n=60) == [0, 0, 0]


def errors(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Expected errors of the same images twice: few are uncertain, and mostly the same ones."""
    before = torch.rand(count, generator=generator) ** 6
    return before, (before * torch.empty(count).uniform_(0.5, 1.1, generator=generator) + 0.01).clamp(max=1)


def test_the_standard_error_is_how_far_changes_spread_from_one_draw_of_images_to_the_next() -> None:
    generator = torch.Generator().manual_seed(0)
    changes, expected = [], []
    for _ in range(1500):
        pairs = [errors(count, generator) for count in (200, 300)]
        before, now = (tuple(pair[place] for pair in pairs) for place in (0, 1))
        changes.append(math.log(error_ratio(*now) / error_ratio(*before)))
        expected.append(standard_error(before, now))
    spread = torch.tensor(changes).std().item()
    assert torch.tensor(expected).mean().item() == pytest.approx(spread, rel=0.08)


def test_a_rise_that_chance_explains_is_none() -> None:
    generator = torch.Generator().manual_seed(1)
    lowest = errors(100, generator)[0], errors(100, generator)[0]
    error = standard_error(lowest, (lowest[0], lowest[1].flip(0)))
    assert error > 0.1
    for factor, counts in ((math.exp(0.9 * CERTAIN * error), False), (math.exp(1.1 * CERTAIN * error), True)):
        found = rise_over(lowest, (lowest[0], lowest[1].flip(0) * factor))
        assert found == pytest.approx(factor - 1 if counts else 0)


def test_of_a_network_that_is_sure_of_everything_it_is_finite_as_it_is_logged() -> None:
    nothing, all_wrong = torch.zeros(100), torch.full((100,), 0.9)
    assert rise_over((nothing, nothing), (nothing, nothing)) == 0
    largest = rise_over((all_wrong, nothing), (nothing, all_wrong))
    assert largest > 1
    assert torch.isfinite(torch.tensor(largest, dtype=torch.float32))
