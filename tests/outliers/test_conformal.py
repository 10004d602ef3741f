"""Halves of a reference: learnt from one, measured against the other alone, and p-values that count it."""

import pytest
import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import Tail
from lightning_anomaly.outliers.conformal import SplitConformal, Statistics, fit_halves
from lightning_anomaly.outliers.scores import ReferenceModel, Spread

MIDDLE = 75  # of 151, so that the halves cannot be mixed up


def statistics(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, 4, 5, generator=torch.Generator().manual_seed(seed))


def maps(statistics: Tensor) -> Statistics:
    """Of a model without classes, whose inputs are no images."""
    return Statistics(torch.arange(len(statistics)), {"conv": statistics}, SampleStatistics())


REFERENCE = statistics(151, 0)


@pytest.fixture
def halves() -> tuple[SplitConformal, SplitConformal]:
    return fit_halves([maps(own.clone()) for own in REFERENCE.split(40)], "reference", both=True)[0]


def test_what_is_learnt_from_a_half_is_measured_by_the_other_alone(halves):
    """Images that something was learnt from are less far from it than new ones, which would all look odd."""
    first, second = REFERENCE[:MIDDLE], REFERENCE[MIDDLE:]
    images = statistics(20, 1)
    for half, learnt, measured in ((halves[0], first, second), (halves[1], second, first)):
        ordinary = ReferenceModel.fit(learnt)
        assert ordinary is not None
        spread = Spread.fit(ordinary.mahalanobis_squared(measured)[0])
        own, new = (spread.scores(ordinary.mahalanobis_squared(values)[0]) for values in (measured, images))
        torch.testing.assert_close(half.own.scores, Tail.fit(own).surprise(own))
        torch.testing.assert_close(half.judge(maps(images)).scores, Tail.fit(own).surprise(new))


def test_a_p_value_counts_the_measured_images_with_scores_as_large_and_the_image_itself(halves):
    images = torch.cat([statistics(30, 1), 100 * statistics(1, 2)])
    for half, number in zip(halves, (151 - MIDDLE, MIDDLE), strict=True):
        _, own, own_p_values = half.own[:3]
        _, scores, p_values = half.judge(maps(images))[:3]
        assert len(own) == number
        larger = (own >= scores[:, None]).sum(1).double()
        assert torch.equal(p_values, (1 + larger) / (1 + number))
        assert p_values[30] == 1 / (1 + number)  # never 0
        # One of the measured images is counted already.
        assert torch.equal(own_p_values, (own >= own[:, None]).sum(1).double() / number)


def test_images_with_nan_are_in_neither_half():
    spoilt = REFERENCE.clone()
    spoilt[[4, 90], 1, 0] = torch.nan
    halves, kept, notes = fit_halves([maps(spoilt)], "reference", both=True)
    assert kept.tolist() == [place for place in range(151) if place not in (4, 90)]
    alone = fit_halves([maps(REFERENCE[kept])], "reference", both=True)[0]
    for half, other in zip(halves, alone, strict=True):
        assert torch.equal(half.own.scores, other.own.scores)
    assert notes == {}


def test_a_reference_whose_images_mostly_have_nan_somewhere_is_refused():
    spoilt = REFERENCE.clone()
    for filter_ in range(4):
        spoilt[filter_ * 20 : filter_ * 20 + 20, filter_, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`reference` should hold images that give finite values\. Found 71 of 151"):
        fit_halves([maps(spoilt)], "reference", both=True)
