"""All views of a sample but that of the filters: fitted to samples, and asked about others."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.feature_views import fit_feature_views
from lightning_anomaly.outliers.mahalanobis import RobustGaussian
from lightning_anomaly.outliers.pixel_words import PixelWords

_CHANGED = 100.0  # standard deviations that a number counts for which is the same in all other images
_ROUNDING = 1e-6  # of a number


class View(Protocol):
    """What is known of ordinary samples from one point of view."""

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples, and give reasons."""


class PixelView(NamedTuple):
    """What ordinary pixels look like.

    Attributes:
        model: The distribution of `pixel_statistics`.
        words: That of properties that have names.
        constant: Numbers that are the same in all images, and say that another one is odd; NaN for the others `(S,)`.
    """

    model: RobustGaussian
    words: PixelWords
    constant: Tensor

    @classmethod
    def fit(cls, samples: SampleStatistics) -> PixelView | None:
        """Fit to samples; None if they are no images, too few or all the same."""
        model = None if samples.pixels is None else RobustGaussian.fit(samples.pixels)
        if model is None or samples.pixels is None:
            return None
        low, high = samples.pixels[samples.pixels.isfinite().all(1)].aminmax(dim=0)
        words = PixelWords.fit(samples.pixels, samples.shape)
        return cls(model, words, torch.where(low == high, low, torch.nan))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by the logarithms of squared Mahalanobis distances, with the rarest property as the reason."""
        assert samples.pixels is not None
        reasons = self.words.reasons(samples.pixels, samples.shape)
        changed = (samples.pixels - self.constant).abs() > _ROUNDING * self.constant.abs()
        squared = self.model.mahalanobis_squared(samples.pixels) + _CHANGED**2 * changed.sum(1)
        return SampleView(squared.log(), reasons)


def fit_views(samples: SampleStatistics) -> dict[str, View]:
    """Fit each view that the samples have; one that cannot be fitted is left out."""
    pixels = PixelView.fit(samples)
    views: dict[str, View] = {} if pixels is None else {"pixels": pixels}
    return {**views, **fit_feature_views(samples)}


def view_samples(samples: SampleStatistics) -> dict[str, SampleView]:
    """View samples among themselves."""
    return {name: view.view(samples) for name, view in fit_views(samples).items()}
