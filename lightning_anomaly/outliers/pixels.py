"""The view of pixels: images unlike the others by plain statistics, before any network sees them."""

from __future__ import annotations

from typing import NamedTuple

from lightning_anomaly.capture.pixels import pixel_phrases
from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.mahalanobis import RobustGaussian

_CLEAR = 3.0  # standard deviations from which one number alone is the reason


class PixelView(NamedTuple):
    """What ordinary pixels look like: the distribution of `pixel_statistics`."""

    model: RobustGaussian

    @classmethod
    def fit(cls, samples: SampleStatistics) -> PixelView | None:
        """Fit to samples; None if they are no images, too few or all the same."""
        model = None if samples.pixels is None else RobustGaussian.fit(samples.pixels)
        return None if model is None else cls(model)

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by their squared Mahalanobis distances, with the number that deviates most as the reason."""
        assert samples.pixels is not None
        phrases = pixel_phrases(samples.shape[0], len(samples.shape) - 1)
        deviations = self.model.deviations(samples.pixels).nan_to_num()
        places = deviations.abs().argmax(1)
        largest = deviations.gather(1, places[:, None])[:, 0]
        reasons = tuple(
            phrases[place][deviation > 0]
            if abs(deviation) >= _CLEAR
            else "an unusual combination of brightness, patterns and colour"
            for place, deviation in zip(places.tolist(), largest.tolist(), strict=True)
        )
        return SampleView(self.model.mahalanobis_squared(samples.pixels), reasons)
