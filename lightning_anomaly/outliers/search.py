"""Images that do not belong, in data sets of any size: learnt from a few thousand, all are scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_anomaly.capture.hooks import MapCapture, isolated_random_state
from lightning_anomaly.capture.images import ImageSource
from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing, usable_layers
from lightning_anomaly.checks import check_fraction, check_seed
from lightning_anomaly.distributed import gather_results, rank_and_world
from lightning_anomaly.notes import left_out, warn_of
from lightning_anomaly.outliers.conformal import FILTERS, Judgement, Statistics, learn_halves
from lightning_anomaly.outliers.report import KEPT, OutlierReport
from lightning_anomaly.progress import track
from lightning_anomaly.report.pictures import drawn, shrink

__all__ = ["find_outliers"]

_REFERENCE = 4000  # images that what is ordinary is learnt from, where none are given
_SMALLEST_REFERENCE = 100
_TOGETHER = 4  # batches that are judged in one operation
_SIDE = 128  # of an image that the report keeps, at most (pixels)
_ORDINARY = 256  # images of the reference that tell their range from black to white


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
    other. The network runs once on each image, those of a `reference` included. Kept are an image's score,
    p-value, layer and filters, and small pictures of the 256 with the largest scores.

    Where processes are connected (`torch.distributed`, as under a Trainer's strategy), all of them call this with the
    same arguments. Each runs every so many-th batch, and all get the report that one process alone would give.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device and in any precision, in which the images are given to it.
        inputs: Images `(N, ...)`, or a loader: its data set is read from the first to the last item, whatever the order
            of the loader, and the first floating-point tensor of a batch is taken.
        reference: Images that are ordinary, likewise; a few thousand are enough. Of each, 20 bytes are kept for every
            filter of the layers that judge, and eight times as many for a while in the widest layer. P-values of
            several layers are too small where there are few: of 100 images, by a tenth to a third with 5 to 60 layers;
            of 500 that was not seen. None takes 4,000 of the inputs at random, or all if there are fewer: then p-values
            only rank the images, and none is found.
        layers: Names of the layers that judge; None takes every convolution.
        false_discovery_rate: Share of ordinary images that is accepted among those found, by the rule of Benjamini and
            Hochberg ("Controlling the false discovery rate", 1995).
        seed: Seed of the choice of the reference and of its halves.
        progress: See `analyze`.

    Returns:
        The report. Whatever could not be used is in its `notes`, which are also warnings.

    Raises:
        ValueError: If images are of several sizes or have no length, none of the first 100 can be read, the reference
            has fewer than 100 or mostly gives NaN, a layer does not exist, the model has no convolution, or an argument
            is not allowed.
        RuntimeError: If another process fails.

    Examples:
        >>> images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images[7] *= 30
        >>> find_outliers(nn.Conv2d(1, 4, 3), images).top(1)
        [7]
    """
    rate = check_fraction("false_discovery_rate", false_discovery_rate, zero=False)
    seed = check_seed(seed)
    search = _Search(model, layers, seed, progress)
    with _buffers_of_first(model), isolated_random_state(seed):
        references = gather_results(lambda: search.reference_share(inputs, reference))
        shares = gather_results(lambda: search.scores_share(references))
        report = gather_results(lambda: search.report(references, shares, rate) if search.rank == 0 else None)[0]
    assert report is not None
    if search.rank == 0:
        warn_of(report.notes)
    return report


@contextmanager
def _buffers_of_first(model: nn.Module) -> Iterator[None]:
    """Buffers are those of process 0 inside: a BatchNorm's differ between the processes of a training."""
    rank, world = rank_and_world()
    if world == 1:
        yield
        return
    plain = {name: own for name, own in model.named_buffers() if own.layout is torch.strided and not own.is_meta}
    own = {name: buffer.clone() for name, buffer in plain.items()}
    first = gather_results(lambda: {name: buffer.cpu() for name, buffer in own.items()} if rank == 0 else {})[0]
    try:
        gather_results(lambda: _set_buffers(plain, first))
        yield
    finally:
        _set_buffers(plain, own)


@torch.no_grad()
def _set_buffers(buffers: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        # Into one that was expanded nothing can be copied.
        if name in values and not torch.equal(buffer, values[name].to(buffer.device)):
            buffer.copy_(values[name])


@dataclass(frozen=True)
class _Reference:
    """What one process knows of the reference: the statistics of its batches, and how many images there are in all."""

    batches: list[Statistics]
    images: int
    unreadable: dict[int, str]
    notes: dict[str, str]


@dataclass(frozen=True)
class _Scores:
    """What one process found: positions `(n,)` of its images and what was said of them."""

    positions: Tensor
    found: Judgement
    unreadable: dict[int, str]
    notes: dict[str, str]


class _Search:
    """One search, in the order of its methods; what they return is brought together between them.

    Args:
        model: See `find_outliers`, as for the others.
        layers: See there.
        seed: See there.
        progress: See there; only the first process has a bar.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] | None, seed: int, progress: bool | None) -> None:
        self._model, self._layers, self._seed = model, layers, seed
        self.rank, self._world = rank_and_world()
        self._progress = progress if self.rank == 0 else False

    def reference_share(self, inputs: Any, reference: Any) -> _Reference:
        """Check everything, and run this process's share of the reference."""
        images = self._images = ImageSource(inputs, "inputs")
        others = self._others = images if reference is None else ImageSource(reference, "reference")
        watched = self._watched = select_layers(self._model, self._layers)
        if not watched:
            raise ValueError("Parameter `model` should have a convolution, or `layers` should be named. Found none.")
        if images.shape != others.shape:
            raise ValueError(
                "Parameters `inputs` and `reference` should hold images of the same shape. "
                f"Found {images.shape} and {others.shape}."
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self._seed), device="cpu")
        if len(order) < _SMALLEST_REFERENCE:
            advice = "" if reference is not None else " To score fewer, give images that belong as `reference`."
            raise ValueError(
                f"Parameter `{others.argument}` should hold at least {_SMALLEST_REFERENCE} images to learn from. "
                f"Found {len(order)}.{advice}"
            )
        self._chosen = (order if reference is not None else order[:_REFERENCE]).tolist()
        self._runner = _Runner(self._model, watched, self._progress)
        share = self._share(others, self._chosen)
        batches = [
            {name: own.cpu() for name, own in statistics.items()}
            for _, statistics in _together(self._runner.statistics(others, share, "reference"))
        ]
        return _Reference(batches, len(images), others.unreadable, self._runner.notes)

    def scores_share(self, references: Sequence[_Reference]) -> _Scores:
        """Learn from the whole reference, and score this process's share of the images."""
        numbers = [own.images for own in references]
        if len({*numbers}) > 1:
            raise ValueError(
                "Parameter `inputs` should hold all images in every process, each of which takes its share of them. "
                f"Found {numbers} images in the processes."
            )
        images = self._images
        in_turn = zip_longest(*(own.batches for own in references))  # part i is that of process i % world
        parts = [own for turn in in_turn for own in turn if own is not None]
        learnt = learn_halves(parts, self._runner.device, self._others.argument)
        self._names, halves, kept, self._unusable = learnt
        if self._others is not images:
            unreadable = {position: error for own in references for position, error in own.unreadable.items()}
            count = len(self._chosen)
            self._unusable |= _unreadable_note(unreadable, f"{count} reference images", "they have no say")
            nonfinite = count - len(kept) - len(unreadable)
            if nonfinite:
                self._unusable["nonfinite reference"] = (
                    f"{nonfinite} of the {count} reference images give NaN or infinite values and have no say."
                )
        chosen = self._chosen = [self._chosen[place] for place in kept.tolist()]
        middle = len(chosen) // 2
        rest: Sequence[int] = range(len(images))
        self._known: list[tuple[Tensor, Judgement]] = []
        if self._others is images:
            own = zip(halves, (chosen[middle:], chosen[:middle]), strict=True)
            self._known = [(torch.tensor(positions, device="cpu"), half.own) for half, positions in own]
            taken = {*chosen}
            rest = [position for position in rest if position not in taken]
        batches = self._runner.statistics(images, self._share(images, rest), "outlier scores")
        scored = []
        for positions, statistics in _together(batches):
            missing = [name for name in self._names if name not in statistics]
            if missing:
                raise ValueError(
                    "Parameter `inputs` should give maps in all layers in which the reference gives them. Found images "
                    f"without any in {missing}: name other layers as `layers`."
                )
            scored.append((positions, halves[0].judge(statistics)))
        return _Scores(*_joined(scored), images.unreadable, self._runner.notes)

    def report(self, references: Sequence[_Reference], shares: Sequence[_Scores], rate: float) -> OutlierReport:
        """Bring everything together, in one process for all."""
        images, n = self._images, len(self._images)
        positions, found = _joined([*self._known, *((own.positions, own.found) for own in shares)])
        order = positions.argsort()
        scores, p_values, layer, filters = (part[order] for part in found)
        notes = unseen_layers(self._model, self._layers) | self._unusable
        for said in (*(own.notes for own in references), *(own.notes for own in shares)):
            notes |= said
        for name in self._watched:
            if name not in self._names:
                said = left_out(name, "its maps of the reference are not finite or do not vary")
                notes = notes | said | notes  # what was said of it before stays
        unreadable = {position: error for own in shares for position, error in own.unreadable.items()}
        notes |= _unreadable_note(unreadable, f"{n} images", "their scores are infinite")
        infinite = [position for position in scores.isinf().nonzero()[:, 0].tolist() if position not in unreadable]
        if infinite:
            notes["nonfinite images"] = (
                f"{len(infinite)} of the {n} images give NaN or infinite values, the first at position "
                f"{infinite[0]}: their scores are infinite."
            )
        report = OutlierReport(
            scores=scores,
            p_values=p_values,
            layers=self._names,
            layer=layer,
            filters=filters,
            n_reference=len(self._chosen),
            false_discovery_rate=rate,
            notes=notes,
            own_reference=self._others is images,
        )
        return replace(report, images=_pictures(images, report.top(KEPT), self._others, self._chosen[:_ORDINARY]))

    def _share(self, images: ImageSource, positions: Sequence[int]) -> list[int]:
        """The positions that this process reads: the batches that one process alone would make, dealt out.

        As many at a time as are judged together, so that also these operations are the same.
        """
        parts = torch.split(torch.as_tensor(positions, dtype=torch.int64, device="cpu"), _TOGETHER * images.batch_size)
        return [position for part in parts[self.rank :: self._world] for position in part.tolist()]


def _unreadable_note(unreadable: Mapping[int, str], images: str, consequence: str) -> dict[str, str]:
    if not unreadable:
        return {}
    first = min(unreadable)
    note = f"{len(unreadable)} of the {images} cannot be read, the first at position {first} ({unreadable[first]}): "
    return {f"unreadable {images.split(maxsplit=1)[1]}": f"{note}{consequence}."}


def _together(batches: Iterable[tuple[Tensor, Statistics]]) -> Iterator[tuple[Tensor, Statistics]]:
    """Several batches in one."""
    batches = iter(batches)
    while some := list(islice(batches, _TOGETHER)):
        names = [name for name in some[0][1] if all(name in statistics for _, statistics in some)]
        statistics = {name: torch.cat([own[name] for _, own in some]) for name in names}
        yield torch.cat([positions for positions, _ in some]), statistics


def _joined(parts: Sequence[tuple[Tensor, Judgement]]) -> tuple[Tensor, Judgement]:
    """Positions and judgements of all batches."""
    nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
    empty = nothing, (nothing.float(), nothing.double(), nothing, nothing.new_zeros(0, FILTERS))
    positions, found = zip(empty, *parts, strict=True)
    scores, p_values, layer, filters = (torch.cat(part) for part in zip(*found, strict=True))
    return torch.cat(positions), (scores, p_values, layer, filters)


def _pictures(images: ImageSource, shown: list[int], others: ImageSource, ordinary: list[int]) -> Tensor | None:
    """Small pictures of the images shown, scaled as ordinary ones; None if they are nothing that can be drawn."""
    if not 1 <= len(images.shape) <= 4:
        return None
    chosen, known = (
        torch.cat([shrink(batch, _SIDE) for _, batch in source.batches(positions)])
        for source, positions in ((images, shown), (others, ordinary))
    )
    return drawn(chosen, known)


class _Runner:
    """Runs a model on images and takes the statistics of its maps, batch by batch."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], progress: bool | None) -> None:
        self._model, self._layers, self._progress = model, layers, progress
        tensors = [*model.parameters(), *model.buffers()]
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
        self.notes: dict[str, str] = {}

    def statistics(
        self, images: ImageSource, positions: Sequence[int], what: str
    ) -> Iterator[tuple[Tensor, Statistics]]:
        """Positions `(n,)` and statistics of each batch."""
        batches = track(images.batches(positions), math.ceil(len(positions) / images.batch_size), what, self._progress)
        for places, batch in batches:
            capture = MapCapture(self._layers, summary=map_statistics)
            with probing(self._model, capture) as call, capture:
                call(batch.to(self.device, self._dtype))
            usable, _, notes = usable_layers(capture.maps, len(batch))
            self.notes |= notes
            statistics = {name: layer.maps for name, layer in usable.items()}
            unreadable = [place for place, position in enumerate(places.tolist()) if position in images.unreadable]
            for own in statistics.values():
                own[unreadable] = torch.nan
            yield places, statistics
