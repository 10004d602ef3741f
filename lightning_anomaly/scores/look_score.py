"""Does a picture look unlike the others? Judge it by statistics of its pixels, without the network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.mahalanobis import RobustGaussian
from lightning_anomaly.scores.pixel_words import PixelWords
from lightning_anomaly.scores.pixels import noise_floors
from lightning_anomaly.scores.scale import TwoTails

_RARE, _RAREST = 3.0, 10.0  # nats from which a statistic counts, and up to which, so that no single one decides


class Look(NamedTuple):
    """A model of the pixel statistics of ordinary images.

    Where images differ much, many statistics are rare in a damaged one without being far from a normal distribution.
    """

    gaussian: RobustGaussian  # of `pixel_statistics`
    tails: TwoTails  # of each of them
    words: PixelWords  # of the properties that have names

    @classmethod
    def fit(cls, samples: SampleStatistics) -> Look | None:
        """Fit to samples; return None if they are not images, too few or identical."""
        pixels = samples.pixels
        if pixels is None or not len(pixels):
            return None
        floors = noise_floors(pixels, samples.shape[0])
        if (gaussian := RobustGaussian.fit(pixels, floors)) is None:
            return None
        tails = TwoTails.fit(pixels[pixels.isfinite().all(1)], floors)
        return cls(gaussian, tails, PixelWords.fit(pixels, samples.shape[0]))

    def measure(self, samples: SampleStatistics) -> Tensor:
        """Compute two measures `(n, 2)`, infinite for NaN.

        They are the logarithm of the squared Mahalanobis distance, and that of the sum of all statistics' surprises.
        """
        assert samples.pixels is not None
        rare = self.tails.surprise(samples.pixels).amax(2).clamp(_RARE, _RAREST).sub(_RARE).sum(1)
        measures = torch.stack([self.gaussian.mahalanobis_squared(samples.pixels).log(), rare.log1p()], 1)
        return torch.where(measures.isnan(), torch.inf, measures)

    def reasons(self, samples: SampleStatistics, strongest: Tensor, surprising: Tensor) -> tuple[str, ...]:
        """Name the rarest property of each image if it is clearly odd, or else say that a `surprising` one has none."""
        assert samples.pixels is not None
        return self.words.reasons(samples.pixels, samples.shape[0], surprising)
