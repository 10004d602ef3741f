"""Scores of images by what was learnt from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_anomaly.capture.samples import SampleStatistics
from lightning_anomaly.notes import nonfinite
from lightning_anomaly.outliers.combine import SampleView, Tail, combine, counted
from lightning_anomaly.outliers.filter_view import ReferenceModel, Spread
from lightning_anomaly.outliers.views import View, fit_views
from lightning_anomaly.tables import listed
from lightning_anomaly.threads import torch_in_threads

_Fitted = TypeVar("_Fitted")
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
        layers = {name: values[images] for name, values in self.layers.items()}
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
        layer: Place of the layer with the largest surprise `(n,)`.
        filters: Its most extreme filters `(n, 3)`, -1 where there are no more.
        views: What each view says; scores are the negative logarithms of tail probabilities.
    """

    positions: Tensor
    scores: Tensor
    layer: Tensor
    filters: Tensor
    views: dict[str, SampleView]

    @staticmethod
    def join(parts: Sequence[Judgement]) -> Judgement:
        """Join what is said of several images by the same views, in the order of their positions."""
        order = torch.cat([part.positions for part in parts]).argsort()
        positions, scores, layer, filters = (
            torch.cat(values)[order] for values in zip(*(part[:4] for part in parts), strict=True)
        )
        views = {}
        for name in parts[0].views:
            reasons = [reason for part in parts for reason in part.views[name].reasons]
            joined = torch.cat([part.views[name].scores for part in parts])
            views[name] = SampleView(joined[order], tuple(reasons[place] for place in order.tolist()))
        return Judgement(positions, scores, layer, filters, views)


class LayerView(NamedTuple):
    """What ordinary samples look like in one layer, and how rare their distances are."""

    model: ReferenceModel
    spread: Spread
    tail: Tail


class Scorer(NamedTuple):
    """Scores samples by all views.

    Attributes:
        layers: What each layer that judges knows, by its name.
        views: The other views.
        tails: How rare the scores of each view are, that of the filters included.
    """

    layers: dict[str, LayerView]
    views: dict[str, View]
    tails: dict[str, Tail]

    @classmethod
    def fit(cls, models: Mapping[str, ReferenceModel], views: Mapping[str, View], samples: Statistics) -> Scorer:
        """Take as the scale of all scores those of samples that neither the models nor the views were fitted to."""
        layers = {}
        for name, (distances, _) in zip(models, _measure(models, samples), strict=True):
            spread = Spread.fit(distances)
            layers[name] = LayerView(models[name], spread, Tail.fit(spread.scores(distances)))
        scorer = cls(layers, dict(views), {})
        scored = scorer._view(samples)[0]
        return scorer._replace(tails={name: Tail.fit(view.scores) for name, view in scored.items()})

    def to(self, device: torch.device) -> Scorer:
        """Move what measures maps to another device."""
        layers = {
            name: known._replace(model=apply_to_collection(known.model, Tensor, Tensor.to, device))
            for name, known in self.layers.items()
        }
        return self._replace(layers=layers)

    @property
    def needs_layers(self) -> bool:
        """Whether scores depend on the layers: those of a model with classes do not."""
        return "filters" in counted([*self.views, "filters"])

    def judge(self, statistics: Statistics) -> Judgement:
        """Judge samples; without statistics of layers nothing is said of filters."""
        views, layer, filters = self._view(statistics)
        views = {name: SampleView(self.tails[name].surprise(view.scores), view.reasons) for name, view in views.items()}
        scores = combine({name: view.scores for name, view in views.items()})
        return Judgement(statistics.positions, scores, layer, filters, views)

    def _view(self, statistics: Statistics) -> tuple[dict[str, SampleView], Tensor, Tensor]:
        """All views, with scores in their own units, and the layers `(n,)` and filters `(n, 3)` of that of filters."""
        views = {name: view.view(statistics.samples) for name, view in self.views.items()}
        if not statistics.layers:
            nothing = torch.zeros(len(statistics.positions), dtype=torch.int64, device="cpu")
            return views, nothing, nothing[:, None].expand(-1, FILTERS)
        measured = _measure({name: known.model for name, known in self.layers.items()}, statistics)
        surprises = torch.stack(
            [
                known.tail.surprise(known.spread.scores(distances))
                for known, (distances, _) in zip(self.layers.values(), measured, strict=True)
            ]
        )
        layer = surprises.argmax(0)
        filters = layer.new_zeros(len(layer), FILTERS)
        for place, (name, known) in enumerate(self.layers.items()):
            tails, blamed = measured[place][1], layer == place
            count = statistics.layers[name].shape[1]
            filters[blamed] = known.model.extreme_filters(tails[blamed.to(tails.device)], count, FILTERS).cpu()
        names = [name or "(the model)" for name in self.layers]
        reasons = tuple(
            f"layer {names[place]}, filters {listed([index for index in row if index >= 0])}"
            for place, row in zip(layer.tolist(), filters.tolist(), strict=True)
        )
        return {**views, "filters": SampleView(surprises.mean(0), reasons)}, layer, filters


def _measure(models: Mapping[str, ReferenceModel], statistics: Statistics) -> list[tuple[Tensor, Tensor]]:
    """Distances `(n, 2)` of samples in each layer, on the CPU, and tails; see `ReferenceModel`."""

    def measure(name: str) -> tuple[Tensor, Tensor]:
        distances, tails = models[name].mahalanobis_squared(statistics.layers[name])
        return distances.cpu(), tails

    device = next(iter(statistics.layers.values())).device
    return list(torch_in_threads(measure, models, device))


def finite_images(parts: Sequence[Statistics], argument: str) -> tuple[Statistics, dict[str, Tensor]]:
    """Choose the images to learn from: those that give finite values, but for filters in which most images do not.

    The parts are on the CPU and are emptied, as they are most of the memory; errors call the images `argument`.

    Returns:
        What is known of these images, and by layer which filters are not finite in most of them `(F,)`.
    """
    positions, layers, samples = Statistics.join(parts)
    complete, unknown = torch.ones(len(positions), dtype=torch.bool, device="cpu"), {}
    for name, values in layers.items():
        finite = values.abs().amax(2).isfinite()
        unknown[name] = finite.sum(0) * 2 <= len(values)
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
    return Statistics(positions, layers, samples), unknown


def fit_scorers(pairs: Sequence[tuple[Statistics, Statistics]], argument: str) -> list[Scorer]:
    """Fit a scorer for each pair: to the first samples, on the scale of the second ones; all by the same views."""
    models = _shared([_fit_layers(fitted.layers) for fitted, _ in pairs])
    if not models[0]:
        raise ValueError(
            f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
            "layer: look for NaN in the images and in the weights."
        )
    views = _shared([fit_views(fitted.samples) for fitted, _ in pairs])
    scales = [scale for _, scale in pairs]
    return [Scorer.fit(*parts) for parts in zip(models, views, scales, strict=True)]


def notes_on_filters(scorer: Scorer, unknown: Mapping[str, Tensor]) -> dict[str, str]:
    """Note the filters that do not judge."""
    notes: dict[str, str] = {}
    for name in scorer.layers:
        if count := int(unknown[name].sum()):
            rest = "in their maps of most reference images and do not judge"
            notes |= nonfinite(name, count, len(unknown[name]), rest)
    return notes


def _fit_layers(layers: Mapping[str, Tensor]) -> dict[str, ReferenceModel]:
    """Fit to the statistics of every layer where that is possible."""
    fits = torch_in_threads(ReferenceModel.fit, layers.values(), torch.device("cpu"))
    return {name: model for name, model in zip(layers, fits, strict=True) if model is not None}


def _shared(found: Sequence[dict[str, _Fitted]]) -> list[dict[str, _Fitted]]:
    """Keep of each dict the names that all of them have."""
    return [{name: part[name] for name in found[0] if all(name in other for other in found)} for part in found]
