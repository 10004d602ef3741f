"""Scores are scaled by other images than those that the views were fitted to; images with NaN are used for neither."""

import pytest
import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import Tail, conformal_p_values
from lightning_anomaly.outliers.filter_view import ReferenceModel, Spread
from lightning_anomaly.outliers.scorer import Statistics, finite_images, fit_scorers


def statistics(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, 4, 5, generator=torch.Generator().manual_seed(seed))


def maps(statistics: Tensor) -> Statistics:
    """Statistics of a model without classes whose inputs are no images."""
    return Statistics(torch.arange(len(statistics)), {"conv": statistics}, SampleStatistics())


REFERENCE = statistics(151, 0)


def test_the_scale_of_scores_is_fitted_to_other_images_than_the_views():
    """Images that a view was fitted to are closer to it than new ones, so that all new images would look odd."""
    first, second, images = REFERENCE[:75], REFERENCE[75:], statistics(20, 1)
    (scorer,) = fit_scorers([(maps(first), maps(second))], "reference")
    model = ReferenceModel.fit(first)
    assert model is not None
    spread = Spread.fit(model.mahalanobis_squared(second)[0])
    ordinary, new = (spread.scores(model.mahalanobis_squared(values)[0]) for values in (second, images))
    layer = Tail.fit(ordinary)
    expected = Tail.fit(layer.surprise(ordinary)).surprise(layer.surprise(new))
    torch.testing.assert_close(scorer.judge(maps(images)).scores, expected)


def test_a_p_value_counts_calibration_scores_that_are_as_large_and_the_image_itself():
    calibration = torch.tensor([1.0, 2, 2, 4], dtype=torch.float64)
    found = conformal_p_values(torch.tensor([0.0, 2, 3, 9, torch.inf]), calibration)
    torch.testing.assert_close(
        found, torch.tensor([1, 4 / 5, 2 / 5, 1 / 5, torch.nan], dtype=torch.float64), equal_nan=True
    )


def test_images_with_nan_are_left_out_of_the_fit():
    spoilt = REFERENCE.clone()
    spoilt[[4, 90], 1, 0] = torch.nan
    kept, unknown = finite_images([maps(part) for part in spoilt.split(40)], "reference")
    assert len(kept.positions) == 149
    assert torch.equal(kept.layers["conv"], REFERENCE[[place for place in range(151) if place not in (4, 90)]])
    assert not unknown["conv"].any()


def test_a_reference_with_mostly_nan_is_refused():
    spoilt = REFERENCE.clone()
    for filter_ in range(4):
        spoilt[filter_ * 20 : filter_ * 20 + 20, filter_, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`reference` should hold images that give finite values\. Found 71 of 151"):
        finite_images([maps(spoilt)], "reference")
