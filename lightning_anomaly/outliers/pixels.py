"""The view of pixels: images unlike the others by plain statistics, before any network sees them."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_anomaly.capture.pixels import pixel_phrases
from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.outliers.combine import SampleView
from lightning_anomaly.outliers.mahalanobis import RobustGaussian

__all__ = ["PixelView"]

_CLEAR = 3.0  # standard deviations from which one number alone is the reason


@dataclass(frozen=True, eq=False)
class PixelView:
    """What ordinary pixels look like.

    Attributes:
        model: Distribution of the statistics of `pixel_statistics`.
        phrases: What each says in words, where it is low and where it is high.
    """

    model: RobustGaussian
    phrases: list[tuple[str, str]]

    @classmethod
    def fit(cls, samples: SampleStatistics) -> PixelView | None:
        """Fit to samples; None if they are no images, too few or all the same."""
        model = None if samples.pixels is None else RobustGaussian.fit(samples.pixels)
        return None if model is None else cls(model, pixel_phrases(samples.shape[0], len(samples.shape) - 1))

    def view(self, samples: SampleStatistics) -> SampleView:
        """Score samples by their squared Mahalanobis distances, with the number that deviates most as the reason."""
        assert samples.pixels is not None
        deviations = self.model.deviations(samples.pixels)
        largest = deviations.nan_to_num().abs().max(1)
        reasons = tuple(
            self._reason(deviations[row, place].item(), place) for row, place in enumerate(largest.indices.tolist())
        )
        return SampleView(self.model.mahalanobis_squared(samples.pixels), reasons)

    def _reason(self, deviation: float, place: int) -> str:
        if abs(deviation) < _CLEAR:
            return "an unusual combination of brightness, patterns and colour"
        return self.phrases[place][deviation > 0]
