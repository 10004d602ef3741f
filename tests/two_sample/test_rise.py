"""How far the ratio of expected errors has risen, and how sure that is."""

import math
from statistics import geometric_mean

import pytest
import torch
from torch import Tensor

from lightning_anomaly.two_sample.rise import ErrorRise, level_of, mean_level, rise_over, standard_error


def added(
    ratios: list[float], rise: ErrorRise | None = None, n: int = 1000, scales: list[float] | None = None
) -> list[float]:
    """The rises, where all images are alike; `scales` are the expected errors of the training images."""
    rise, ones = rise or ErrorRise(), torch.ones(n)
    pairs = zip(ratios, scales or [0.1] * len(ratios), strict=True)
    return [rise.add(ones * scale, ones * scale * ratio) for ratio, scale in pairs]


def test_a_level_is_a_mean_of_three_and_the_rise_is_over_the_lowest_whenever_that_was() -> None:
    ratios = [1.5, 1.5, 1.56, 1.47, 1.5, 1.5, 1.53, 1.53, 1.53]
    rises = added(ratios)
    assert rises[:2] == [0, 0]
    assert rises[-1] == pytest.approx(1.53 / geometric_mean(ratios[3:6]) - 1, rel=1e-4)
    assert added([1.5, 1.2, 1.1, 0.8])[-1] == 0


def test_each_validation_counts_the_same_however_many_errors_are_expected_at_it() -> None:
    ratios = [1.3, 1.3, 1.0, 1.3, 1.3, 1.3]
    assert added(ratios, scales=[0.1, 0.1, 0.7, 0.1, 0.05, 0.02]) == pytest.approx(added(ratios), rel=1e-4)


def test_what_is_saved_goes_on_and_other_images_begin_anew() -> None:
    first = ErrorRise()
    added([1.0, 1.0, 1.0, 1.3], first)
    resumed = ErrorRise()
    resumed.load_state_dict(first.state_dict())
    assert added([1.6], resumed) == added([1.6], first) == pytest.approx([geometric_mean([1, 1.3, 1.6]) - 1])
    fresh = ErrorRise()
    fresh.load_state_dict(ErrorRise().state_dict())
    assert added([1.0, 1.0, 1.3], fresh)[-1] == 0
    assert added([1.9, 1.9, 1.9], resumed, n=1200) == [0, 0, 0]


def errors(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Expected errors of the same images twice: few are uncertain, and mostly the same ones."""
    before = torch.rand(count, generator=generator) ** 6
    return before, (before * torch.empty(count).uniform_(0.5, 1.1, generator=generator) + 0.01).clamp(max=1)


def test_the_standard_error_is_how_far_changes_spread_from_one_draw_of_images_to_the_next() -> None:
    """In a mean of three validations what differs from one to the next averages out, and counts less than in one."""
    generator = torch.Generator().manual_seed(0)
    for validations, draws in ((1, 800), (3, 250)):
        changes, expected = [], []
        for _ in range(draws):
            pairs = [[errors(count, generator) for count in (200, 300)] for _ in range(validations)]
            before, now = (mean_level([level_of(*(p[at] for p in pair)) for pair in pairs]) for at in (0, 1))
            changes.append(now.log_ratio - before.log_ratio)
            expected.append(standard_error(before, now))
        spread = torch.tensor(changes).std().item()
        assert torch.tensor(expected).mean().item() == pytest.approx(spread, rel=0.08)


def test_of_a_small_group_the_errors_expected_of_as_many_images_count() -> None:
    rise, ones = ErrorRise(), torch.ones(1000)
    for count, few in ((79, True), (80, False)):  # 9.875 errors, and just 10
        for _ in range(3):
            rise.add(0.125 * ones, 0.125 * ones[:count])
        assert rise.too_few_expected_errors == few


def test_a_rise_that_chance_explains_is_none() -> None:
    generator = torch.Generator().manual_seed(1)
    train, val = errors(100, generator)[0], errors(100, generator)[0]
    lowest = level_of(train, val)
    error = standard_error(lowest, level_of(train, val.flip(0)))
    assert error > 0.1
    for errors_apart, counts in ((3.9, False), (4.1, True)):
        factor = math.exp(errors_apart * error)
        found = rise_over(lowest, level_of(train, val.flip(0) * factor))
        assert found == pytest.approx(factor - 1 if counts else 0)


def test_fifty_looks_at_a_network_that_is_right_in_nearly_all_and_does_not_overfit_find_next_to_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = alarms_of_a_tenth = 0
    for _ in range(40):
        # The logit of each image's expected error wanders, alike for both kinds: 1% on average, most of it in a few.
        logits, rise, rises, ratios = torch.randn(2, 1000, generator=generator), ErrorRise(), [], []
        for _ in range(50):
            logits = 0.9 * logits + (1 - 0.9**2) ** 0.5 * torch.randn(2, 1000, generator=generator)
            train, val = torch.sigmoid(2.5 * logits - 7)
            rises.append(rise.add(train, val))
            ratios.append(level_of(train, val).log_ratio)
        alarms += max(rises) > 0.1
        means = torch.tensor(ratios).unfold(0, 3, 1).mean(1)
        alarms_of_a_tenth += bool((means - means.cummin(0).values > 0.1).any())
    assert alarms <= 2
    assert alarms_of_a_tenth == 40  # without a look at the standard error


def test_of_a_network_that_is_sure_of_everything_it_is_finite_as_it_is_logged() -> None:
    nothing, all_wrong = torch.zeros(100), torch.full((100,), 0.9)
    assert rise_over(level_of(nothing, nothing), level_of(nothing, nothing)) == 0
    largest = rise_over(level_of(all_wrong, nothing), level_of(nothing, all_wrong))
    assert largest > 1
    assert torch.isfinite(torch.tensor(largest, dtype=torch.float32))


def test_few_errors_expected_of_either_kind_are_enough_and_a_level_of_fewer_is_not_the_lowest() -> None:
    rise = ErrorRise()
    added([1.0] * 3, rise, scales=[0.02] * 3)
    assert added([200.0] * 3, rise, scales=[1e-4] * 3)[-1] == pytest.approx(199, rel=1e-3)
    assert not rise.too_few_expected_errors
    assert added([90.0] * 3, rise, scales=[1e-4] * 3)[-1] == 0
    assert rise.too_few_expected_errors
    scales = [0.02] * 3 + [0.002] * 3 + [0.02] * 5
    assert added([1.0] * 3 + [0.5] * 3 + [1.02] * 5, scales=scales)[-1] == pytest.approx(0.02, rel=1e-3)
