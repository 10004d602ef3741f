"""Does a picture look unlike the others? Judge it by statistics of its pixels, without the network, and say why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.scores.distributions import RobustGaussian, TwoTails
from lightning_anomaly.scores.pixels import noise_floors, pixel_names

_RARE, _RAREST = 3.0, 10.0  # nats from which a statistic counts, and up to which, so that no single one decides


class Look(NamedTuple):
    """A model of the pixel statistics of ordinary images."""

    gaussian: RobustGaussian  # of `pixel_statistics`
    tails: TwoTails  # of each of them: many are rare in a damaged image without being far from a normal distribution
    words: PixelWords  # for single traits

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
        """Compute the logarithms of the squared distance and of the sum of surprises `(n, 2)`, infinite for NaN."""
        assert samples.pixels is not None
        rare = self.tails.surprise(samples.pixels).amax(2).clamp(_RARE, _RAREST).sub(_RARE).sum(1)
        measures = torch.stack([self.gaussian.mahalanobis_squared(samples.pixels).log(), rare.log1p()], 1)
        return torch.where(measures.isnan(), torch.inf, measures)

    def reasons(self, samples: SampleStatistics, strongest: Tensor, surprising: Tensor) -> tuple[str, ...]:
        """Name the rarest trait of each image if it is clearly odd, or else say that a `surprising` one has none."""
        assert samples.pixels is not None
        return self.words.reasons(samples.pixels, samples.shape[0], surprising)


_CLEAR = 3.0  # nats from which a single trait is the reason
_CERTAIN = 5.0  # nats at which surprises are capped; of capped traits the first is the reason

_ENDS = 0.2, 0.4  # quantiles between which damage of a tenth of the images does not hide itself
_CAUTION = 1.0  # nats less by tails from there, which say less of what lies far out
_NO_SINGLE = "an unusual combination of brightness, patterns and color"


class _Trait(NamedTuple):
    """What one sees: weights of statistics by name, and words for too little and too much of it, or ""."""

    weights: dict[str, float]
    less: str
    more: str


# Causes come before their effects: an image of noise has no flat areas either. Noise and detail are relative to the
# contrast, so that a faded image lacks contrast only.
_TRAITS = (
    _Trait({"noise": 1, "contrast": -0.5}, "", "noise or fine lines all over"),
    _Trait({"fine patterns": 1, "contrast": -1}, "little fine detail", ""),
    # A dark image also lacks contrast; one that only lacks contrast keeps its mean.
    _Trait({"mean": 5, "highest": 1, "lowest": 1}, "darker than the rest", ""),
    _Trait({"contrast": 1}, "low contrast", "high contrast"),
    _Trait({"mean": 1}, "darker than the rest", "brighter than the rest"),
    _Trait({"brightest share": 1}, "", "overexposed, or a white area"),
    _Trait({"darkest share": 1}, "no areas as dark as its darkest pixel", "large areas as dark as its darkest pixel"),
    _Trait({"flat share": 1}, "no flat areas", "large flat areas"),
    _Trait({"edges": 1}, "", "unusually sharp edges"),
    _Trait({"middle": 1}, "dark in the middle", "bright in the middle"),
    _Trait({"plain border": 1}, "", "a plain edge, such as a frame or sky"),
    _Trait({"plainest line": 1, "contrast": -1}, "a line of one color across it", ""),
)
_COLOR = (
    _Trait({"color": 1}, "little color", "much color"),
    _Trait({"fine color patterns": 1, "color": -1}, "", "colors that change from pixel to pixel"),
    _Trait({"alike channels": 1}, "an unusual mix of colors", ""),
)
_PLACES = (
    _Trait({"ends 0": 1}, "brighter at the bottom", "brighter at the top"),
    _Trait({"ends 1": 1}, "brighter at the right", "brighter at the left"),
)


class PixelWords(NamedTuple):
    """The distribution of P traits of ordinary images, by tails from far out, and from nearer to the middle."""

    tails: TwoTails
    inner: TwoTails

    @classmethod
    def fit(cls, statistics: Tensor, channels: int) -> PixelWords:
        """Fit to `pixel_statistics` `(N, S)` of images; those with NaN are ignored."""
        measured = _measure_traits(statistics[statistics.isfinite().all(1)], channels)
        return cls(TwoTails.fit(measured), TwoTails.fit(measured, levels=_ENDS))

    def reasons(self, statistics: Tensor, channels: int, surprising: Tensor) -> tuple[str, ...]:
        """Name the rarest trait of each image `(n, S)` if it is clearly odd; `surprising` ones always get words."""
        measured = _measure_traits(statistics, channels)
        surprises = self.inner.surprise(measured) - _CAUTION
        surprises[surprising] = surprises[surprising].fmax(self.tails.surprise(measured[surprising]))
        surprises = surprises.clamp(max=_CERTAIN)
        # A yellow image lacks blue more than it has red and green: of several colors, that which differs most counts.
        differ = (measured - self.tails.ends[1:3].mean(0))[:, -channels:].abs()
        surprises[:, -channels:][differ < differ.amax(1, keepdim=True)] = 0
        words = [word for trait in _traits(channels) for word in (trait.less, trait.more)]
        surprises = surprises.flatten(1).nan_to_num(0)  # (n, 2 P), 0 if constant
        surprises[:, [not word for word in words]] = 0
        alike = statistics[:, _places_named("flat share", channels)].eq(1).all(1)
        finite = statistics.isfinite().all(1)
        rows = zip(surprises.tolist(), surprising.tolist(), strict=True)
        reasons = [words[row.index(max(row))] if max(row) >= _CLEAR else _NO_SINGLE * whole for row, whole in rows]
        for place in alike.nonzero()[:, 0].tolist():
            reasons[place] = "the same everywhere"
        for place in (~finite).nonzero()[:, 0].tolist():
            reasons[place] = "NaN or infinite pixels"
        return tuple(reasons)


def _traits(channels: int) -> list[_Trait]:
    names = [(f"little of channel {i}", f"much of channel {i}") for i in range(channels) if channels > 1]
    if channels == 3:
        names = [("much cyan", "much red"), ("much magenta", "much green"), ("much yellow", "much blue")]
    colors = [_Trait({f"channel {i}": 1}, *words) for i, words in enumerate(names)]
    return [*_TRAITS, *(_COLOR if channels == 3 else ()), *_PLACES, *colors]


def _measure_traits(statistics: Tensor, channels: int) -> Tensor:
    """Compute traits `(n, P)`, weighted sums of statistics; statistics of one name are averaged."""
    traits = _traits(channels)
    weights = torch.zeros(statistics.shape[1], len(traits), dtype=torch.float64, device="cpu")
    for column, trait in enumerate(traits):
        for name, weight in trait.weights.items():
            places = _places_named(name, channels)
            weights[places, column] = weight / len(places)
    return statistics.double() @ weights


def _places_named(name: str, channels: int) -> list[int]:
    return [place for place, entry in enumerate(pixel_names(channels)) if entry == name]
