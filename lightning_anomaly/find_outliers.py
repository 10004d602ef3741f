"""Images that do not belong, in data sets of any size: learnt from a few thousand, all are scored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_anomaly.browser import OUTLIERS, drawn, shrink
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.images import ImageSource
from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing, usable_layers
from lightning_anomaly.checks import check_fraction, check_integer
from lightning_anomaly.outlier_report import OutlierReport
from lightning_anomaly.progress import track
from lightning_anomaly.scores import Ordinary, in_spreads

__all__ = ["find_outliers"]

_REFERENCE = 4000  # images that what is ordinary is learnt from, where none are given
_SMALLEST_REFERENCE = 100
_FILTERS = 3  # named for each image
_SIDE = 128  # of an image that the report keeps, at most (pixels)
_ORDINARY = 256  # images of the reference that tell their range from black to white

Statistics = dict[str, Tensor]  # (n, F, 5) of each layer


def find_outliers(
    model: nn.Module,
    inputs: Tensor | DataLoader[Any],
    reference: Tensor | DataLoader[Any] | None = None,
    *,
    layers: Iterable[str] | None = None,
    false_discovery_rate: float = 0.1,
    seed: int = 0,
    progress: bool | None = None,
) -> OutlierReport:
    """Score every image of a data set by how little it belongs to a reference, without any label.

    The score is that of `AnomalyReport.outlier_scores`, learnt on one half of the reference and measured against the
    other: an image's p-value is the share of that half with scores as large (Bates, Candes, Lei, Romano and Sesia,
    "Testing for outliers with conformal p-values", 2023). So it says how rare such an image is among those of the
    reference, and if there are outliers in that, it is too large. The halves of the reference are measured by each
    other. Images are read once, the reference twice if it is a part of them; nothing of an image is kept but its score.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device and in any precision, in which the images are given to it.
        inputs: Images `(N, ...)`, or a loader: its data set is read from the first to the last item, whatever the order
            of the loader, and the first floating-point tensor of a batch is taken.
        reference: Images that are ordinary, likewise. None takes 4,000 of the inputs at random, or all if there are
            fewer.
        layers: Names of the layers that judge; None takes every convolution.
        false_discovery_rate: Share of ordinary images that is accepted among those found, by the rule of Benjamini and
            Hochberg ("Controlling the false discovery rate", 1995).
        seed: Seed of the choice of the reference and of its halves.
        progress: See `analyze`.

    Returns:
        The report. Whatever could not be used is in its `notes`, each of which is also a warning.

    Raises:
        ValueError: If images are of several sizes or have no length, the reference has fewer than 100 or gives NaN, a
            layer does not exist, the model has no convolution, or an argument is not allowed.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images[7] *= 30
        >>> find_outliers(nn.Conv2d(1, 4, 3), images).top(1)
        [7]
    """
    rate = check_fraction("false_discovery_rate", false_discovery_rate, zero=False)
    seed = check_integer("seed", seed, 0)
    images = ImageSource(inputs, "inputs")
    others = images if reference is None else ImageSource(reference, "reference")
    watched = select_layers(model, layers)
    if not watched:
        raise ValueError("Parameter `model` should have a convolution, or `layers` should be named. Found none.")
    if images.shape != others.shape:
        raise ValueError(
            "Parameters `inputs` and `reference` should hold images of the same shape. "
            f"Found {images.shape} and {others.shape}."
        )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    if len(order) < _SMALLEST_REFERENCE:
        raise ValueError(
            f"Parameter `{others.argument}` should hold at least {_SMALLEST_REFERENCE} images to learn from. "
            f"Found {len(order)}."
        )
    chosen = (order if reference is not None else order[:_REFERENCE]).tolist()
    runner = _Runner(model, watched, progress)
    names, halves = _learn(runner, others, chosen)
    found = _Found(len(images))
    rest: list[int] | range = range(len(images))
    if reference is None:
        middle = len(chosen) // 2
        for half, own in zip(halves, (chosen[middle:], chosen[:middle]), strict=True):
            found.write(torch.tensor(own), half.own)
        taken = {*chosen}
        rest = [position for position in rest if position not in taken]
    for positions, statistics in runner.statistics(images, rest, "outlier scores"):
        found.write(positions, halves[0].judge(statistics))
    notes = unseen_layers(model, layers) | runner.notes
    infinite = found.scores.isinf().nonzero()[:, 0].tolist()
    if infinite:
        notes["nonfinite images"] = (
            f"{len(infinite)} of the {len(images)} images give NaN or infinite values, the first at position "
            f"{infinite[0]}: their scores are infinite."
        )
    for note in notes.values():
        warnings.warn(note, stacklevel=2)
    shown = found.scores.argsort(descending=True, stable=True)[:OUTLIERS].tolist()
    return OutlierReport(
        scores=found.scores,
        p_values=found.p_values,
        layers=names,
        layer=found.layer,
        filters=found.filters,
        n_reference=len(chosen),
        false_discovery_rate=rate,
        images=_pictures(images, shown, others, chosen[:_ORDINARY]),
        notes=notes,
    )


def _pictures(images: ImageSource, shown: list[int], others: ImageSource, ordinary: list[int]) -> Tensor | None:
    """Small pictures of the images shown, scaled as ordinary ones; None if they are nothing that can be drawn."""
    if not 1 <= len(images.shape) <= 4:
        return None
    chosen, known = (
        torch.cat([shrink(batch, _SIDE) for _, batch in source.batches(positions)])
        for source, positions in ((images, shown), (others, ordinary))
    )
    return drawn(chosen, known)


class _Found:
    """What is known of N images, in any order."""

    def __init__(self, images: int) -> None:
        self.scores, self.p_values = torch.zeros(images), torch.ones(images, dtype=torch.float64)
        self.layer = torch.zeros(images, dtype=torch.int64)
        self.filters = torch.zeros(images, _FILTERS, dtype=torch.int64)

    def write(self, positions: Tensor, found: tuple[Tensor, ...]) -> None:
        """Takes what `_Half.judge` gave."""
        self.scores[positions], self.p_values[positions], self.layer[positions], self.filters[positions] = found


def _learn(runner: _Runner, images: ImageSource, chosen: list[int]) -> tuple[tuple[str, ...], tuple[_Half, _Half]]:
    """The layers that can judge, and what is ordinary in them by each half of the reference."""
    batches = [own for _, own in runner.statistics(images, chosen, "reference")]
    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    taken = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in names}
    middle = len(chosen) // 2
    first = {name: (Ordinary.fit(own[:middle]), own[middle:]) for name, own in taken.items()}
    second = {name: (Ordinary.fit(own[middle:]), own[:middle]) for name, own in taken.items()}
    usable = tuple(name for name in names if first[name][0] is not None and second[name][0] is not None)
    if not usable:
        raise ValueError(
            f"Parameter `{images.argument}` should give maps that are finite and vary from image to image. Found none "
            "in any layer: look for NaN in the images and in the weights."
        )
    halves = [_Half({name: half[name] for name in usable}, runner.device) for half in (first, second)]
    return usable, (halves[0], halves[1])


class _Runner:
    """Runs a model on images and takes the statistics of its maps, batch by batch."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], progress: bool | None) -> None:
        self._model, self._layers, self._progress = model, layers, progress
        tensors = [*model.parameters(), *model.buffers()]
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
        self.notes: dict[str, str] = {}

    def statistics(
        self, images: ImageSource, positions: list[int] | range, what: str
    ) -> Iterator[tuple[Tensor, Statistics]]:
        """Positions `(n,)` and statistics of each batch."""
        batches = track(images.batches(positions), math.ceil(len(positions) / images.batch_size), what, self._progress)
        for places, batch in batches:
            capture = MapCapture(self._layers, rectify=False, summary=map_statistics)
            with probing(self._model, capture), capture:
                self._model(batch.to(self.device, self._dtype))
            usable, _, notes = usable_layers(capture.maps, len(batch))
            self.notes |= notes
            yield places, {name: layer.maps for name, layer in usable.items()}


class _Half:
    """What is ordinary, learnt from one half of the reference and measured against the other.

    Args:
        layers: What was learnt of each layer, and the statistics of the other half.
        device: Where images are judged.

    Attributes:
        own: What `judge` says of the other half, each image being one of those that it is compared with.
    """

    def __init__(self, layers: Mapping[str, tuple[Ordinary | None, Tensor]], device: torch.device) -> None:
        self._ordinary = {name: own.to(device) for name, (own, _) in layers.items() if own is not None}
        measured = {name: statistics.to(device) for name, (_, statistics) in layers.items()}
        self._lengths = {name: own.lengths(measured[name])[0] for name, own in self._ordinary.items()}
        scores, layer, filters = self._scores(measured)
        self._sorted = scores.sort().values
        self.own = scores, self._larger(scores).double() / len(scores), layer, filters

    def judge(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, p-values and strongest layers `(n,)`, and that layer's strongest filters `(n, 3)`."""
        scores, layer, filters = self._scores(statistics)
        return scores, (1 + self._larger(scores)).double() / (1 + len(self._sorted)), layer, filters

    def _larger(self, scores: Tensor) -> Tensor:
        """How many of the other half have scores at least as large."""
        return len(self._sorted) - torch.searchsorted(self._sorted, scores)

    def _scores(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
        scores, filters = [], []
        for name, ordinary in self._ordinary.items():
            lengths, strongest = ordinary.lengths(statistics[name], _FILTERS)
            scores.append(in_spreads(lengths, self._lengths[name]))
            filters.append(strongest)
        largest, layer = torch.stack(scores).max(0)
        strongest = torch.stack(filters)[layer, torch.arange(len(layer), device=layer.device)]
        return largest.cpu(), layer.cpu(), strongest.cpu()
