"""Fit the views of pixels, features and logits to samples, and score other samples by them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.feature_views import fit_feature_views
from lightning_anomaly.outliers.mahalanobis import RobustGaussian
from lightning_anomaly.outliers.pixel_words import PixelWords

_CHANGED = 100.0  # standard deviations added for a changed statistic that is constant in all other images
_ROUNDING = 1e-6  # relative difference up to which a statistic is unchanged


class View(Protocol):
    """A fitted model of ordinary samples."""

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples and give a reason for each score."""


class PixelView(NamedTuple):
    """A model of the pixel statistics of ordinary images.

    Attributes:
        model: Distribution of `pixel_statistics`.
        words: Distribution of the properties that have names.
        constant: Values of the statistics that are the same in all images, NaN for the other statistics `(S,)`.
    """

    model: RobustGaussian
    words: PixelWords
    constant: Tensor

    @classmethod
    def fit(cls, samples: SampleStatistics) -> PixelView | None:
        """Fit to samples; return None if they are not images, too few or identical."""
        model = None if samples.pixels is None else RobustGaussian.fit(samples.pixels)
        if model is None or samples.pixels is None:
            return None
        low, high = samples.pixels[samples.pixels.isfinite().all(1)].aminmax(dim=0)
        words = PixelWords.fit(samples.pixels, samples.shape)
        return cls(model, words, torch.where(low == high, low, torch.nan))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by the log of their squared Mahalanobis distance; the reason is their rarest property."""
        assert samples.pixels is not None
        reasons = self.words.reasons(samples.pixels, samples.shape)
        changed = (samples.pixels - self.constant).abs() > _ROUNDING * self.constant.abs()
        squared = self.model.mahalanobis_squared(samples.pixels) + _CHANGED**2 * changed.sum(1)
        return SampleView(squared.log(), reasons)


def fit_views(samples: SampleStatistics) -> dict[str, View]:
    """Fit every view for which the samples suffice."""
    pixels = PixelView.fit(samples)
    views: dict[str, View] = {} if pixels is None else {"pixels": pixels}
    return {**views, **fit_feature_views(samples)}


def view_samples(samples: SampleStatistics) -> dict[str, SampleView]:
    """Score samples by views that were fitted to the same samples."""
    return {name: view.view(samples) for name, view in fit_views(samples).items()}
