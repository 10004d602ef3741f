"""Scores with p-values: fitted to one half of a reference, and calibrated by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.notes import nonfinite
from lightning_anomaly.outliers.combine import SampleView, Tail, combine
from lightning_anomaly.outliers.scores import ReferenceModel, Spread
from lightning_anomaly.outliers.views import ClassView, PixelView, fit_views
from lightning_anomaly.tables import listed
from lightning_anomaly.threads import torch_in_threads

_Own = TypeVar("_Own")
FILTERS = 3  # named for each image


class Statistics(NamedTuple):
    """What is known of some images.

    Attributes:
        positions: Those of the images `(n,)`.
        layers: See `map_statistics` `{layer: (n, F, 5)}`.
        samples: What is known beside the maps.
    """

    positions: Tensor
    layers: dict[str, Tensor]
    samples: SampleStatistics

    def select(self, images: Any) -> Statistics:
        """Select images."""
        layers = {name: own[images] for name, own in self.layers.items()}
        return Statistics(self.positions[images], layers, self.samples.select(images))

    @staticmethod
    def join(parts: Sequence[Statistics]) -> Statistics:
        """Join parts, by the layers that all of them have; empties the parts, as they may be most of the memory."""
        names = [name for name in parts[0].layers if all(name in part.layers for part in parts)]
        layers = {name: torch.cat([part.layers.pop(name) for part in parts]) for name in names}
        positions = torch.cat([part.positions for part in parts])
        return Statistics(positions, layers, SampleStatistics.join([part.samples for part in parts]))


class Judgement(NamedTuple):
    """What is said of some images, on the CPU.

    Attributes:
        positions: Those of the images `(n,)`.
        scores: See `combine` `(n,)`.
        p_values: Shares of the calibrating samples with scores as large `(n,)`.
        layer: Place of the layer with the largest score `(n,)`.
        filters: Its most extreme filters `(n, 3)`, -1 where there are no more.
        views: What each view says; scores are the negative logarithms of tail probabilities.
    """

    positions: Tensor
    scores: Tensor
    p_values: Tensor
    layer: Tensor
    filters: Tensor
    views: dict[str, SampleView]

    @staticmethod
    def join(parts: Sequence[Judgement]) -> Judgement:
        """Join what is said of several images by the same views, in the order of their positions."""
        order = torch.cat([part.positions for part in parts]).argsort()
        positions, scores, p_values, layer, filters = (
            torch.cat(own)[order] for own in zip(*(part[:5] for part in parts), strict=True)
        )
        views = {}
        for name in parts[0].views:
            reasons = [reason for part in parts for reason in part.views[name].reasons]
            own = torch.cat([part.views[name].scores for part in parts])
            views[name] = SampleView(own[order], tuple(reasons[place] for place in order.tolist()))
        return Judgement(positions, scores, p_values, layer, filters, views)


class SplitConformal:
    """Scores of samples by all views, with conformal p-values.

    Args:
        models: What the reference looks like in each layer.
        views: The other views of the reference.
        calibration: Statistics of samples that neither was fitted to. Their distances are the scale of a layer's
            scores, the scores of each view say how rare others are, and their own scores what others are compared with.

    Attributes:
        layers: Names of the layers that judge.
        own: Judgement of these samples, each of which is among those that it is compared with.
    """

    def __init__(
        self,
        models: Mapping[str, ReferenceModel],
        views: Mapping[str, PixelView | ClassView],
        calibration: Statistics,
    ) -> None:
        self.layers = tuple(models)
        self._models = dict(models)
        self._views = dict(views)
        measured = self._measure(calibration)
        self._spreads = [Spread.fit(distances) for distances, _ in measured]
        views_of, layer, filters = self._view(calibration, measured)
        self._tails = {name: Tail.fit(view.scores) for name, view in views_of.items()}
        scores, views_of = self._combine(views_of)
        self._sorted = scores.sort().values
        p_values = self._larger(scores).double() / len(scores)
        self.own = Judgement(calibration.positions, scores, p_values, layer, filters, views_of)

    def judge(self, statistics: Statistics) -> Judgement:
        """Judge new samples by their statistics."""
        views, layer, filters = self._view(statistics, self._measure(statistics))
        scores, views = self._combine(views)
        p_values = (1 + self._larger(scores)).double() / (1 + len(self._sorted))
        return Judgement(statistics.positions, scores, p_values, layer, filters, views)

    def to(self, device: torch.device) -> None:
        """Move what judges maps to another device, in place."""
        self._models, self._spreads = apply_to_collection((self._models, self._spreads), Tensor, Tensor.to, device)

    def _measure(self, statistics: Statistics) -> list[tuple[Tensor, Tensor]]:
        def measure(name: str) -> tuple[Tensor, Tensor]:
            return self._models[name].mahalanobis_squared(statistics.layers[name])

        return list(torch_in_threads(measure, self.layers, statistics.layers[self.layers[0]].device))

    def _view(
        self, statistics: Statistics, measured: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[dict[str, SampleView], Tensor, Tensor]:
        """All views, with scores in their own units, and the layers `(n,)` and filters `(n, 3)` of that of filters."""
        layers = [own.scores(distances) for own, (distances, _) in zip(self._spreads, measured, strict=True)]
        largest, layer = torch.stack(layers).max(0)
        filters = layer.new_zeros(len(layer), FILTERS)
        for place, (name, model) in enumerate(self._models.items()):
            own = layer == place
            filters[own] = model.extreme_filters(measured[place][1][own], statistics.layers[name].shape[1], FILTERS)
        layer, filters = layer.cpu(), filters.cpu()
        names = [name or "(the model)" for name in self.layers]
        reasons = tuple(
            f"layer {names[place]}, filters {listed([index for index in own if index >= 0])}"
            for place, own in zip(layer.tolist(), filters.tolist(), strict=True)
        )
        views = {name: view.view(statistics.samples) for name, view in self._views.items()}
        return {**views, "filters": SampleView(largest.cpu(), reasons)}, layer, filters

    def _combine(self, views: Mapping[str, SampleView]) -> tuple[Tensor, dict[str, SampleView]]:
        surprises = {
            name: SampleView(self._tails[name].surprise(view.scores), view.reasons) for name, view in views.items()
        }
        return combine({name: view.scores for name, view in surprises.items()}), surprises

    def _larger(self, scores: Tensor) -> Tensor:
        """How many of the calibrating samples have scores at least as large."""
        return len(self._sorted) - torch.searchsorted(self._sorted, scores)


def fit_halves(
    parts: Sequence[Statistics], argument: str, both: bool
) -> tuple[list[SplitConformal], Tensor, dict[str, str]]:
    """Fit to the first half of a reference, and calibrate by the other; if `both`, then also the other way round.

    Its parts are on the CPU and are emptied, as they are most of the memory; errors call it `argument`. Images with NaN
    or infinite values are left out, unless these are of filters in which most images have them.

    Returns:
        The fits, positions `(m,)` of the images that they use, those of the first half first, and notes on filters that
        do not judge.
    """
    positions, layers, samples = Statistics.join(parts)
    complete, unknown = torch.ones(len(positions), dtype=torch.bool, device="cpu"), {}
    for name, own in layers.items():
        finite = own.abs().amax(2).isfinite()
        unknown[name] = finite.sum(0) * 2 <= len(own)
        complete &= finite[:, ~unknown[name]].all(1)
    kept = int(complete.sum())
    if 2 * kept <= len(complete):
        raise ValueError(
            f"Parameter `{argument}` should hold images that give finite values. Found {kept} of {len(complete)}: "
            "look for images that cannot be read, NaN in the images and values beyond the precision of the model."
        )
    if kept < len(complete):
        layers = {name: layers.pop(name)[complete] for name in [*layers]}
        positions, samples = positions[complete], samples.select(complete)
    every = Statistics(positions, layers, samples)
    halves = [every.select(slice(None, kept // 2)), every.select(slice(kept // 2, None))]
    fitted = halves if both else halves[:1]
    models = _shared([_fit_layers(half.layers) for half in fitted])
    if not models[0]:
        raise ValueError(
            f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
            "layer: look for NaN in the images and in the weights."
        )
    views = _shared([fit_views(half.samples) for half in fitted])
    fits = [SplitConformal(*half) for half in zip(models, views, reversed(halves), strict=False)]
    notes: dict[str, str] = {}
    for name in models[0]:
        if count := int(unknown[name].sum()):
            notes |= nonfinite(
                name, count, len(unknown[name]), "in their maps of most reference images and do not judge"
            )
    return fits, positions, notes


def _fit_layers(layers: Mapping[str, Tensor]) -> dict[str, ReferenceModel]:
    """Fit to the statistics of every layer where that is possible."""
    fits = torch_in_threads(ReferenceModel.fit, layers.values(), torch.device("cpu"))
    return {name: model for name, model in zip(layers, fits, strict=True) if model is not None}


def _shared(found: Sequence[dict[str, _Own]]) -> list[dict[str, _Own]]:
    """Keep of each dict the names that all of them have."""
    return [{name: own[name] for name in found[0] if all(name in other for other in found)} for own in found]
