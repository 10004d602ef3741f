"""Does a picture look unlike the others? Judge it by statistics of its pixels, without the network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.mahalanobis import RobustGaussian
from lightning_anomaly.scores.pixel_words import PixelWords
from lightning_anomaly.scores.pixels import noise_floors


class Look(NamedTuple):
    """A model of the pixel statistics of ordinary images.

    Attributes:
        gaussian: Distribution of `pixel_statistics`.
        words: Distribution of the properties that have names.
    """

    gaussian: RobustGaussian
    words: PixelWords

    @classmethod
    def fit(cls, samples: SampleStatistics) -> Look | None:
        """Fit to samples; return None if they are not images, too few or identical."""
        pixels = samples.pixels
        if pixels is None or not len(pixels):
            return None
        gaussian = RobustGaussian.fit(pixels, noise_floors(pixels, samples.shape[0]))
        return None if gaussian is None else cls(gaussian, PixelWords.fit(pixels, samples.shape[0]))

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute the logarithm of squared Mahalanobis distances `(n, 1)`, infinite for NaN."""
        assert samples.pixels is not None
        return self.gaussian.mahalanobis_squared(samples.pixels).log()[:, None]

    def reasons(self, samples: SampleStatistics, strongest: Tensor) -> tuple[str, ...]:
        """Name the rarest property of each image."""
        assert samples.pixels is not None
        return self.words.reasons(samples.pixels, samples.shape[0])
