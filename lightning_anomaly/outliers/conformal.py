"""Scores with p-values: fitted to one half of a reference, and calibrated by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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

FILTERS = 3  # named for each image


class Statistics(NamedTuple):
    """What is known of some images.

    Attributes:
        layers: See `map_statistics` `{layer: (n, F, 5)}`.
        samples: What is known beside the maps.
    """

    layers: dict[str, Tensor]
    samples: SampleStatistics

    @staticmethod
    def join(parts: Sequence[Statistics]) -> Statistics:
        """Join parts, by the layers that all of them have; empties the parts, as they may be most of the memory."""
        names = [name for name in parts[0].layers if all(name in part.layers for part in parts)]
        layers = {name: torch.cat([part.layers.pop(name) for part in parts]) for name in names}
        return Statistics(layers, SampleStatistics.join([part.samples for part in parts]))


class Judgement(NamedTuple):
    """What is said of some images, on the CPU.

    Attributes:
        scores: See `combine` `(n,)`.
        p_values: Shares of the calibrating samples with scores as large `(n,)`.
        layer: Place of the layer with the largest score `(n,)`.
        filters: Its most extreme filters `(n, 3)`, -1 where there are no more.
        views: What each view says; scores are the negative logarithms of tail probabilities.
    """

    scores: Tensor
    p_values: Tensor
    layer: Tensor
    filters: Tensor
    views: dict[str, SampleView]

    @staticmethod
    def join(parts: Sequence[Judgement], order: Tensor) -> Judgement:
        """Join what is said of several images by the same views, and put them in an order."""
        scores, p_values, layer, filters = (
            torch.cat(own)[order] for own in zip(*(part[:4] for part in parts), strict=True)
        )
        views = {}
        for name in parts[0].views:
            reasons = [reason for part in parts for reason in part.views[name].reasons]
            own = torch.cat([part.views[name].scores for part in parts])
            views[name] = SampleView(own[order], tuple(reasons[place] for place in order.tolist()))
        return Judgement(scores, p_values, layer, filters, views)


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
        self.own = Judgement(scores, self._larger(scores).double() / len(scores), layer, filters, views_of)

    def judge(self, statistics: Statistics) -> Judgement:
        """Judge new samples by their statistics."""
        views, layer, filters = self._view(statistics, self._measure(statistics))
        scores, views = self._combine(views)
        p_values = (1 + self._larger(scores)).double() / (1 + len(self._sorted))
        return Judgement(scores, p_values, layer, filters, views)

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
    """Fit to the first half of a reference, and calibrate by the other.

    Args:
        parts: Statistics of parts of the reference, on the CPU; emptied, as they are most of the memory.
        argument: The name that errors call the reference by.
        both: Whether to fit to the second half as well, which is then calibrated by the first.

    Returns:
        The fits, which images of the reference they use `(m,)`, those of the first half first, and notes on filters
        that do not judge. Images with NaN or infinite values in other filters are left out.
    """
    nothing = ValueError(
        f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
        "layer: look for NaN in the images and in the weights."
    )
    statistics, samples = Statistics.join(parts)
    if not statistics:
        raise nothing
    finite = {name: own.abs().amax(2).isfinite() for name, own in statistics.items()}
    unknown = {name: own.sum(0) * 2 <= len(own) for name, own in finite.items()}
    complete = torch.stack([own[:, ~unknown[name]].all(1) for name, own in finite.items()]).all(0)
    kept = complete.nonzero()[:, 0]
    if 2 * len(kept) <= len(complete):
        raise ValueError(
            f"Parameter `{argument}` should hold images that give finite values. Found {len(kept)} of {len(complete)}: "
            "look for images that cannot be read, NaN in the images and values beyond the precision of the model."
        )
    if len(kept) < len(complete):
        statistics = {name: statistics.pop(name)[kept] for name in [*statistics]}
        samples = samples.select(kept)
    halves = [slice(None, len(kept) // 2), slice(len(kept) // 2, None)]
    fitted = halves if both else halves[:1]
    models = [_fit_layers(statistics, half) for half in fitted]
    usable = tuple(name for name in statistics if all(name in own for own in models))
    if not usable:
        raise nothing
    views = [fit_views(samples.select(half)) for half in fitted]
    shared = [name for name in views[0] if all(name in seen for seen in views)]
    fits = [
        SplitConformal(
            {name: own[name] for name in usable},
            {name: seen[name] for name in shared},
            Statistics({name: statistics[name][other] for name in usable}, samples.select(other)),
        )
        for own, seen, other in zip(models, views, reversed(halves), strict=False)
    ]
    notes: dict[str, str] = {}
    for name in usable:
        if unknown[name].any():
            where = "in their maps of most reference images and do not judge"
            notes |= nonfinite(name, int(unknown[name].sum()), len(unknown[name]), where)
    return fits, kept, notes


def _fit_layers(statistics: Mapping[str, Tensor], half: slice) -> dict[str, ReferenceModel]:
    """Fit to half of the samples in every layer where that is possible."""
    cpu = torch.device("cpu")
    fit = torch_in_threads(lambda own: ReferenceModel.fit(own[half]), statistics.values(), cpu)
    return {name: model for name, model in zip(statistics, fit, strict=True) if model is not None}
