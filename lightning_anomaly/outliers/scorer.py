"""Score images by models that were fitted to a reference."""

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
    """Statistics of n images.

    Attributes:
        positions: Positions of the images in their data set `(n,)`.
        layers: `map_statistics` of each layer, `{layer: (n, F, 5)}`.
        samples: Statistics of pixels, features and logits.
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
        """Join parts by the layers that all of them have; the parts are emptied to save memory."""
        names = [name for name in parts[0].layers if all(name in part.layers for part in parts)]
        layers = {name: torch.cat([part.layers.pop(name) for part in parts]) for name in names}
        positions = torch.cat([part.positions for part in parts])
        return Statistics(positions, layers, SampleStatistics.join([part.samples for part in parts]))


class Judgement(NamedTuple):
    """Outlier scores of n images and their reasons, on the CPU.

    Attributes:
        positions: Positions of the images in their data set `(n,)`.
        scores: Outlier scores `(n,)`, see `combine`.
        layer: Index of the layer with the largest score `(n,)`.
        filters: Its most extreme filters `(n, 3)`, padded with -1.
        views: Negative log tail probabilities and reasons of each view.
    """

    positions: Tensor
    scores: Tensor
    layer: Tensor
    filters: Tensor
    views: dict[str, SampleView]

    @staticmethod
    def join(parts: Sequence[Judgement]) -> Judgement:
        """Join judgements by the same views, sorted by position."""
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
    """A layer's model of the reference, and the distribution of its distances."""

    model: ReferenceModel
    spread: Spread
    tail: Tail


class Scorer(NamedTuple):
    """Scores samples by all views.

    Attributes:
        layers: The view of filters, by layer.
        views: The other views, by name.
        tails: Distributions of the scores of all views, by name.
    """

    layers: dict[str, LayerView]
    views: dict[str, View]
    tails: dict[str, Tail]

    @classmethod
    def fit(cls, models: Mapping[str, ReferenceModel], views: Mapping[str, View], samples: Statistics) -> Scorer:
        """Calibrate fitted models and views on held-out samples."""
        layers = {}
        for name, (distances, _) in zip(models, _measure(models, samples), strict=True):
            spread = Spread.fit(distances)
            layers[name] = LayerView(models[name], spread, Tail.fit(spread.scores(distances)))
        scorer = cls(layers, dict(views), {})
        scored = scorer._view(samples)[0]
        return scorer._replace(tails={name: Tail.fit(view.scores) for name, view in scored.items()})

    def to(self, device: torch.device) -> Scorer:
        """Move the models of the layers to another device."""
        layers = {
            name: layer._replace(model=apply_to_collection(layer.model, Tensor, Tensor.to, device))
            for name, layer in self.layers.items()
        }
        return self._replace(layers=layers)

    @property
    def needs_layers(self) -> bool:
        """Whether scores depend on the view of filters: not in a model with classes."""
        return "filters" in counted([*self.views, "filters"])

    def judge(self, statistics: Statistics) -> Judgement:
        """Score samples; without statistics of layers the view of filters is left out."""
        views, layer, filters = self._view(statistics)
        views = {name: SampleView(self.tails[name].surprise(view.scores), view.reasons) for name, view in views.items()}
        scores = combine({name: view.scores for name, view in views.items()})
        return Judgement(statistics.positions, scores, layer, filters, views)

    def _view(self, statistics: Statistics) -> tuple[dict[str, SampleView], Tensor, Tensor]:
        """Return all views in their own units, and the most extreme layer `(n,)` and filters `(n, 3)`."""
        views = {name: view.view(statistics.samples) for name, view in self.views.items()}
        if not statistics.layers:
            nothing = torch.zeros(len(statistics.positions), dtype=torch.int64, device="cpu")
            return views, nothing, nothing[:, None].expand(-1, FILTERS)
        measured = _measure({name: layer.model for name, layer in self.layers.items()}, statistics)
        surprises = torch.stack(
            [
                layer.tail.surprise(layer.spread.scores(distances))
                for layer, (distances, _) in zip(self.layers.values(), measured, strict=True)
            ]
        )
        farthest = surprises.argmax(0)
        filters = farthest.new_zeros(len(farthest), FILTERS)
        for place, (name, layer) in enumerate(self.layers.items()):
            tails, here = measured[place][1], farthest == place
            count = statistics.layers[name].shape[1]
            filters[here] = layer.model.extreme_filters(tails[here.to(tails.device)], count, FILTERS).cpu()
        names = [name or "(the model)" for name in self.layers]
        reasons = tuple(
            f"layer {names[place]}, filters {listed([index for index in row if index >= 0])}"
            for place, row in zip(farthest.tolist(), filters.tolist(), strict=True)
        )
        return {**views, "filters": SampleView(surprises.mean(0), reasons)}, farthest, filters


def _measure(models: Mapping[str, ReferenceModel], statistics: Statistics) -> list[tuple[Tensor, Tensor]]:
    """Compute distances `(n, 2)`, on the CPU, and tails of samples in each layer, see `ReferenceModel`."""

    def measure(name: str) -> tuple[Tensor, Tensor]:
        distances, tails = models[name].mahalanobis_squared(statistics.layers[name])
        return distances.cpu(), tails

    device = next(iter(statistics.layers.values())).device
    return list(torch_in_threads(measure, models, device))


def finite_images(parts: Sequence[Statistics], argument: str) -> tuple[Statistics, dict[str, Tensor]]:
    """Select the images with finite values, and the filters that are not finite in most images `{layer: (F,)}`.

    Values of such filters are ignored. The parts are on the CPU and are emptied to save memory; errors call the images
    `argument`.
    """
    positions, layers, samples = Statistics.join(parts)
    complete, nonfinite_filters = torch.ones(len(positions), dtype=torch.bool, device="cpu"), {}
    for name, values in layers.items():
        finite = values.abs().amax(2).isfinite()
        nonfinite_filters[name] = finite.sum(0) * 2 <= len(values)
        complete &= finite[:, ~nonfinite_filters[name]].all(1)
    count = int(complete.sum())
    if 2 * count <= len(complete):
        raise ValueError(
            f"Parameter `{argument}` should hold images that give finite values. Found {count} of {len(complete)}: "
            "look for unreadable images, NaN in the images and values beyond the precision of the model."
        )
    if count < len(complete):
        layers = {name: layers.pop(name)[complete] for name in [*layers]}
        positions, samples = positions[complete], samples.select(complete)
    return Statistics(positions, layers, samples), nonfinite_filters


def fit_scorers(pairs: Sequence[tuple[Statistics, Statistics]], argument: str) -> list[Scorer]:
    """Fit a scorer to each pair of samples to fit to and samples to calibrate on; all scorers have the same views."""
    models = _shared([_fit_layers(fitted.layers) for fitted, _ in pairs])
    if not models[0]:
        raise ValueError(
            f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
            "layer: look for NaN in the images and in the weights."
        )
    views = _shared([fit_views(fitted.samples) for fitted, _ in pairs])
    scales = [scale for _, scale in pairs]
    return [Scorer.fit(*parts) for parts in zip(models, views, scales, strict=True)]


def notes_on_filters(scorer: Scorer, nonfinite_filters: Mapping[str, Tensor]) -> dict[str, str]:
    """Note the filters that are ignored."""
    notes: dict[str, str] = {}
    for name in scorer.layers:
        if count := int(nonfinite_filters[name].sum()):
            ending = "in their maps of most reference images and are ignored"
            notes |= nonfinite(name, count, len(nonfinite_filters[name]), ending)
    return notes


def _fit_layers(layers: Mapping[str, Tensor]) -> dict[str, ReferenceModel]:
    """Fit a model to every layer whose statistics allow it."""
    fits = torch_in_threads(ReferenceModel.fit, layers.values(), torch.device("cpu"))
    return {name: model for name, model in zip(layers, fits, strict=True) if model is not None}


def _shared(fits: Sequence[dict[str, _Fitted]]) -> list[dict[str, _Fitted]]:
    """Reduce each dict to the names that all of them have."""
    return [{name: fit[name] for name in fits[0] if all(name in part for part in fits)} for fit in fits]
