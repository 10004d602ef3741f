"""Scores with p-values: fitted to one half of a reference, and calibrated by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_anomaly.clustering.engine import load_engine
from lightning_anomaly.clustering.threads import torch_in_threads
from lightning_anomaly.notes import nonfinite
from lightning_anomaly.outliers.scores import ReferenceModel, Spread

__all__ = ["FILTERS", "Judgement", "SplitConformal", "Statistics", "fit_halves"]

FILTERS = 3  # named for each image

Statistics = dict[str, Tensor]  # (n, F, 5) of each layer
Judgement = tuple[Tensor, Tensor, Tensor, Tensor]  # scores, p-values and layers (n,), filters (n, 3)


class SplitConformal:
    """Scores of samples, the largest of their scores in the layers, with conformal p-values.

    Args:
        models: What the reference looks like in each layer.
        calibration: Statistics of samples that the models were not fitted to. Their distances are the scale of scores,
            and their scores are those that others are compared with.

    Attributes:
        own: Judgement of these samples, each of which is among those that it is compared with.
    """

    def __init__(self, models: Mapping[str, ReferenceModel], calibration: Statistics) -> None:
        self._models = dict(models)
        measured = self._measure(calibration)
        self._spreads = [Spread.fit(distances) for distances, _ in measured]
        scores, layer, filters = self._strongest(calibration, measured)
        self._sorted = scores.sort().values
        self.own: Judgement = (scores, self._larger(scores).double() / len(scores), layer, filters)

    def judge(self, statistics: Statistics) -> Judgement:
        """Judge new samples by their statistics."""
        scores, layer, filters = self._strongest(statistics, self._measure(statistics))
        return scores, (1 + self._larger(scores)).double() / (1 + len(self._sorted)), layer, filters

    def to(self, device: torch.device) -> None:
        """Move to another device, in place."""
        self._models = {name: model.to(device) for name, model in self._models.items()}
        self._spreads = [spread.to(device) for spread in self._spreads]

    def _measure(self, statistics: Statistics) -> list[tuple[Tensor, Tensor]]:
        return [model.mahalanobis_squared(statistics[name]) for name, model in self._models.items()]

    def _strongest(
        self, statistics: Statistics, measured: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and layers that have them `(n,)`, and those layers' most extreme filters `(n, 3)`, on the CPU."""
        scores = [own.scores(distances) for own, (distances, _) in zip(self._spreads, measured, strict=True)]
        largest, layer = torch.stack(scores).max(0)
        filters = layer.new_zeros(len(layer), FILTERS)
        for place, (name, model) in enumerate(self._models.items()):
            own = layer == place
            filters[own] = model.extreme_filters(measured[place][1][own], statistics[name].shape[1], FILTERS)
        return largest.cpu(), layer.cpu(), filters.cpu()

    def _larger(self, scores: Tensor) -> Tensor:
        """How many of the calibrating samples have scores at least as large."""
        return len(self._sorted) - torch.searchsorted(self._sorted, scores)


def fit_halves(
    parts: Sequence[Statistics], argument: str
) -> tuple[tuple[str, ...], tuple[SplitConformal, SplitConformal], Tensor, dict[str, str]]:
    """Fit to either half of a reference, and calibrate by the other.

    Args:
        parts: Statistics of parts of the reference, on the CPU; emptied, as they are most of the memory.
        argument: The name that errors call the reference by.

    Returns:
        The layers that judge, the two fits, which images of the reference they use `(m,)`, those of the first half
        first, and notes on filters that do not judge. Images with NaN or infinite values in other filters are left out.
    """
    nothing = ValueError(
        f"Parameter `{argument}` should give maps that are finite and vary from image to image. Found none in any "
        "layer: look for NaN in the images and in the weights."
    )
    names = [name for name in parts[0] if all(name in part for part in parts)]
    if not names:
        raise nothing
    statistics = {name: torch.cat([part.pop(name) for part in parts]) for name in names}
    unknown = {name: own.isfinite().all(2).sum(0) * 2 <= len(own) for name, own in statistics.items()}
    complete = torch.stack([own[:, ~unknown[name]].isfinite().all(2).all(1) for name, own in statistics.items()]).all(0)
    kept = complete.nonzero()[:, 0]
    if 2 * len(kept) <= len(complete):
        raise ValueError(
            f"Parameter `{argument}` should hold images that give finite values. Found {len(kept)} of {len(complete)}: "
            "look for images that cannot be read, NaN in the images and values beyond the precision of the model."
        )
    if len(kept) < len(complete):
        statistics = {name: statistics.pop(name)[kept] for name in names}
    first, second = slice(None, len(kept) // 2), slice(len(kept) // 2, None)
    models = _fit_layers(statistics, first), _fit_layers(statistics, second)
    usable = tuple(name for name in names if name in models[0] and name in models[1])
    if not usable:
        raise nothing
    fits = [
        SplitConformal({name: own[name] for name in usable}, {name: statistics[name][other] for name in usable})
        for own, other in zip(models, (second, first), strict=True)
    ]
    notes: dict[str, str] = {}
    for name in usable:
        if unknown[name].any():
            where = "in their maps of most reference images and do not judge"
            notes |= nonfinite(name, int(unknown[name].sum()), len(unknown[name]), where)
    return usable, (fits[0], fits[1]), kept, notes


def _fit_layers(statistics: Statistics, half: slice) -> dict[str, ReferenceModel]:
    """Fit to half of the samples in every layer where that is possible."""
    engine = load_engine("auto")
    fit = torch_in_threads(
        lambda own: ReferenceModel.fit(own[half], engine), statistics.values(), like=torch.empty(0, device="cpu")
    )
    return {name: model for name, model in zip(statistics, fit, strict=True) if model is not None}
