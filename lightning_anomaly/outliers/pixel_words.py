"""Say in words what is odd about an image, by the plain statistics of its pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.capture.pixels import pixel_names

_LEVELS = (0.1, 0.25, 0.75, 0.9)  # quantiles, which few outliers in the reference do not move
_NARROWEST = 0.02  # scale of a tail, relative to the range between the outer quantiles
_CLEAR = 3.0  # nats, from which one property alone is the reason
_CERTAIN = 5.0  # nats, beyond which all properties are equally rare, and the first is the reason

_NO_SINGLE = "an unusual combination of brightness, patterns and colour"


class _Property(NamedTuple):
    """What a person sees: a sum of statistics by name, and the words for less and for more of it; "" for no words."""

    weights: dict[str, float]
    less: str
    more: str


# What explains other properties stands before them: an image of noise has no flat areas either. Noise and detail are
# relative to the contrast: a faded image lacks contrast, and no detail.
_PROPERTIES = (
    _Property({"noise": 1, "contrast": -0.5}, "", "noisy"),
    _Property({"fine patterns": 1, "contrast": -1}, "little fine detail", ""),
    _Property({"contrast": 1}, "low contrast", "high contrast"),
    _Property({"mean": 1}, "darker than the rest", "brighter than the rest"),
    _Property({"brightest share": 1}, "", "large areas as bright as its brightest pixel"),
    _Property(
        {"darkest share": 1}, "no areas as dark as its darkest pixel", "large areas as dark as its darkest pixel"
    ),
    _Property({"flat share": 1}, "no flat areas", "large flat areas"),
    _Property({"edges": 1}, "", "unusually sharp edges"),
    _Property({"middle": 1}, "dark in the middle", "bright in the middle"),
)
_COLOUR = (
    _Property({"colour": 1}, "little colour", "much colour"),
    _Property({"fine colour patterns": 1, "colour": -1}, "", "colours that change from pixel to pixel"),
    _Property({"alike channels": 1}, "an unusual mix of colours", ""),
)


class PixelWords(NamedTuple):
    """How far the properties of ordinary images spread.

    Attributes:
        quantiles: The 0.1, 0.25, 0.75 and 0.9 quantiles of P properties `(4, P)`.
    """

    quantiles: Tensor

    @classmethod
    def fit(cls, statistics: Tensor, shape: tuple[int, ...]) -> PixelWords:
        """Fit to `pixel_statistics` `(N, S)` of images of a shape `(C, ...)`; those with NaN are left out."""
        ordered = _measure(statistics[statistics.isfinite().all(1)], shape).sort(0).values
        return cls(ordered[[int(level * len(ordered)) for level in _LEVELS]])

    def reasons(self, statistics: Tensor, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Name the property of each image `(n, S)` that is rarest among ordinary ones.

        The tails of a property fall exponentially, as steeply as between the quantiles: see `Tail`.
        """
        values, (lowest, low, high, highest) = _measure(statistics, shape), self.quantiles
        narrowest = _NARROWEST * (highest - lowest)
        sides = [
            math.log(10) + math.log(2.5) * beyond / torch.maximum(width, narrowest)
            for beyond, width in ((lowest - values, low - lowest), (values - highest, highest - high))
        ]
        words = [word for known in _properties(shape) for word in (known.less, known.more)]
        surprises = torch.stack(sides, 2).clamp(max=_CERTAIN).flatten(1)  # (n, 2 P), NaN where a property is constant
        surprises[:, [not word for word in words]] = 0
        alike = statistics[:, _places("flat share", shape)].eq(1).all(1)
        finite = statistics.isfinite().all(1)
        reasons = []
        for row, *state in zip(surprises.nan_to_num(0).tolist(), alike.tolist(), finite.tolist(), strict=True):
            if state[1]:
                found = words[row.index(max(row))] if max(row) >= _CLEAR else _NO_SINGLE
                reasons.append("the same everywhere" if state[0] else found)
            else:
                reasons.append("NaN or infinite pixels")
        return tuple(reasons)


def _properties(shape: tuple[int, ...]) -> list[_Property]:
    """The properties of images of a shape `(C, ...)`."""
    channels, axes = shape[0], len(shape) - 1
    found = [*_PROPERTIES, *(_COLOUR if channels == 3 else ())]
    ends = [("top", "bottom"), ("left", "right")] if axes == 2 else [("start", "end")] * axes
    for axis, (first, last) in enumerate(ends):
        where = f" of axis {axis}" if axes == 3 else ""
        found.append(
            _Property({f"ends {axis}": 1}, f"brighter at the {last}{where}", f"brighter at the {first}{where}")
        )
    names = ("red", "green", "blue") if channels == 3 else [f"of channel {channel}" for channel in range(channels)]
    if channels > 1:
        found += [_Property({f"channel {i}": 1}, f"little {name}", f"much {name}") for i, name in enumerate(names)]
    return found


def _measure(statistics: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Measure properties `(n, P)`: weighted sums of statistics, of which those of one name count by their mean."""
    properties = _properties(shape)
    weights = torch.zeros(statistics.shape[1], len(properties), dtype=torch.float64, device="cpu")
    for column, known in enumerate(properties):
        for name, weight in known.weights.items():
            places = _places(name, shape)
            weights[places, column] = weight / len(places)
    return statistics.double() @ weights


def _places(name: str, shape: tuple[int, ...]) -> list[int]:
    return [place for place, known in enumerate(pixel_names(shape[0], len(shape) - 1)) if known == name]
