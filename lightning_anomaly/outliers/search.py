"""Find the outliers of a data set of any size: fit to a few thousand images, and score all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.capture.drawing import drawn, shrink
from lightning_anomaly.capture.hooks import MapCapture, isolated_random_state
from lightning_anomaly.capture.images import ImageSource
from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing, usable_layers
from lightning_anomaly.checks import check_fraction, check_integer
from lightning_anomaly.distributed import broadcast_result, even_slices, gather_results, rank_and_world
from lightning_anomaly.notes import left_out, warn_of
from lightning_anomaly.outliers.conformal import Judgement, SplitConformal, Statistics, fit_halves
from lightning_anomaly.outliers.report import KEPT, OutlierReport
from lightning_anomaly.progress import track

_REFERENCE = 4000  # of the inputs, where no reference is given
_MIN_REFERENCE = 100
_BATCHES = 4  # judged in one operation
_SIDE = 128  # of an image that the report keeps, at most (pixels)
_SCALE_IMAGES = 256  # of the reference, whose range is shown from black to white

_Seen = tuple[list[Statistics], int, dict[int, str]]  # of the reference, number of inputs, and what could not be read
_Scored = tuple[list[Judgement], dict[int, str], dict[str, str]]  # inputs, what could not be read, and notes


def find_outliers(
    model: nn.Module,
    inputs: Tensor | Dataset[Any] | DataLoader[Any],
    reference: Tensor | Dataset[Any] | DataLoader[Any] | None = None,
    *,
    layers: Iterable[str] | None = None,
    false_discovery_rate: float = 0.1,
    seed: int = 0,
    progress: bool | None = None,
) -> OutlierReport:
    """Score every image of a data set by how little it belongs to a reference, without any label.

    The score is that of `AnomalyReport.outlier_scores`, which combines what pixels, filters and classes say, fitted to
    one half of the reference and calibrated by the other: an image's p-value is the share of that half with scores as
    large (Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023). So it says how
    rare such an image is among those of the reference, and if there are outliers in that, it is too large. Each half
    of the reference is scored by the other. The network runs once on each image, those of a `reference` included. Kept
    are an image's score and p-value, what each view says, its layer and filters, and small pictures of the 256 with
    the largest scores.

    Where processes are connected (`torch.distributed`, as under a Trainer's strategy), all of them call this with the
    same arguments. Each runs its share of the images, and all get the same report.

    The model runs in evaluation mode without gradients; its flags, buffers and hooks and the global random state are
    afterwards as before, also after an exception.

    Args:
        model: Any model, on any device and in any precision, in which the images are given to it.
        inputs: Images `(N, ...)`, a Dataset or a DataLoader: a data set is read from the first to the last item,
            whatever the order of the loader, and the first floating-point tensor of a batch is taken. The report has
            the names of files that a data set has in its `samples`, as torchvision's `ImageFolder`.
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
    search = _Search(model, layers, check_integer("seed", seed, 0, 2**64 - 1), progress)
    with isolated_random_state(search.seed):
        shares = gather_results(lambda: search.run_reference(inputs, reference))
        if search.rank > 0:  # most of the memory
            shares = []
        judge, known = broadcast_result(lambda: search.fit(shares))
        scored = gather_results(lambda: search.score(judge, known))
        report = broadcast_result(lambda: search.report(judge, scored, rate))
    if search.rank == 0:
        warn_of(report.notes)
    return report


class _Search:
    """One search in one process: each method is a step, between which processes exchange the results."""

    def __init__(self, model: nn.Module, layers: Iterable[str] | None, seed: int, progress: bool | None) -> None:
        self.seed = seed
        self.rank, self._world = rank_and_world()
        self._model, self._layers = model, layers
        self._progress = progress if self.rank == 0 else False
        self._notes: dict[str, str] = {}
        tensors = [*model.parameters(), *model.buffers()]
        self._device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
        self._buffers: dict[str, Tensor] = {}
        if self._world > 1:  # those of process 0 for all: a BatchNorm's differ
            self._buffers = broadcast_result(lambda: {name: own.cpu() for name, own in model.named_buffers()})

    def run_reference(self, inputs: Any, reference: Any) -> _Seen:
        """Check everything, and run the model on this process's share of the reference."""
        images = self._images = ImageSource(inputs, "inputs")
        others = self._others = images if reference is None else ImageSource(reference, "reference")
        for source in (images, others):
            if not source.dtype.is_floating_point:
                raise ValueError(
                    f"Parameter `{source.argument}` should hold scaled floating-point images. Found {source.dtype}."
                )
        self._class_names = images.class_names
        self._watched = select_layers(self._model, self._layers)
        if not self._watched:
            raise ValueError("Parameter `model` should have a convolution, or `layers` should be named. Found none.")
        if images.shape != others.shape:
            raise ValueError(
                "Parameters `inputs` and `reference` should hold images of the same shape. "
                f"Found {images.shape} and {others.shape}."
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.seed), device="cpu")
        if len(order) < _MIN_REFERENCE:
            advice = "" if reference is not None else " To score fewer, give images that belong as `reference`."
            raise ValueError(
                f"Parameter `{others.argument}` should hold at least {_MIN_REFERENCE} images to learn from. "
                f"Found {len(order)}.{advice}"
            )
        classes = len({*(images.classes or ())})
        if others.classes and len({*others.classes}) == 1 < classes:
            self._notes["one class"] = (
                f"All reference images are of one class, and the inputs of {classes}, of which the others will have "
                "large scores: give a `reference` of all classes."
            )
        self._chosen: list[int] = (order if reference is not None else order[:_REFERENCE]).tolist()
        batches = [
            statistics._replace(layers={name: part.cpu() for name, part in statistics.layers.items()})
            for statistics in self._run(others, self._chosen, "reference")
        ]
        return batches, len(images), others.unreadable

    def fit(self, shares: Sequence[_Seen]) -> tuple[SplitConformal, set[int]]:
        """Fit to the whole reference, in process 0; return the fit, and the positions of the inputs that are in it."""
        batches, numbers, unreadable = zip(*shares, strict=True)
        if len({*numbers}) > 1:
            raise ValueError(
                "Parameter `inputs` should hold all images in every process, each of which takes its share of them. "
                f"Found {[*numbers]} images in the processes."
            )
        own_reference = self._others is self._images
        halves, used, notes = fit_halves([*itertools.chain(*batches)], self._others.argument, both=own_reference)
        self._used: list[int] = used.tolist()  # positions in the reference
        if not own_reference:
            unused, count = {*self._chosen}.difference(self._used), len(self._chosen)
            files = self._others.names
            notes |= _unusable_notes(_merged(unreadable), unused, count, files, "reference images", "they have no say")
        for name in self._watched:
            if name not in halves[0].layers:  # what a pass has found to be wrong with it replaces this note
                notes |= left_out(name, "its maps of the reference are not finite or do not vary")
        self._notes = notes | self._notes
        self._judged = [half.own for half in halves] if own_reference else []  # what is said of those among the inputs
        return halves[0], {*self._used} if own_reference else set()

    def score(self, judge: SplitConformal, known: set[int]) -> _Scored:
        """Score this process's share of the images whose scores are not known."""
        images = self._images
        rest = [position for position in range(len(images)) if position not in known]
        judge.to(self._device)
        judged = []
        for statistics in self._run(images, rest, "outlier scores"):
            if missing := [name for name in judge.layers if name not in statistics.layers]:
                raise ValueError(
                    "Parameter `inputs` should give maps in all layers in which the reference gives them. Found images "
                    f"without any in {missing}: name other layers as `layers`."
                )
            judged.append(judge.judge(statistics))
        return judged, images.unreadable, self._notes

    def report(self, judge: SplitConformal, scored: Sequence[_Scored], rate: float) -> OutlierReport:
        """Join all scores into a report, in process 0."""
        images = self._images
        judgements, errors, notes_of = zip(*scored, strict=True)
        every = [*self._judged, *itertools.chain(*judgements)]
        _, scores, p_values, layer, filters, views = Judgement.join(every)
        infinite = scores.isinf().nonzero()[:, 0].tolist()
        notes = unseen_layers(self._model, self._layers) | _merged(notes_of)
        then = "their scores are infinite"
        notes |= _unusable_notes(_merged(errors), infinite, len(images), images.names, "images", then)
        report = OutlierReport(
            scores=scores,
            p_values=p_values,
            layers=judge.layers,
            layer=layer,
            filters=filters,
            views=views,
            n_reference=len(self._used),
            false_discovery_rate=rate,
            notes=notes,
            own_reference=self._others is images,
            names=images.names,
            unreadable=_merged(errors),
        )
        shown = _pictures(images, report.top(KEPT), self._others, self._used[:_SCALE_IMAGES])
        return replace(report, images=shown)

    def _run(self, images: ImageSource, positions: Sequence[int], what: str) -> Iterator[Statistics]:
        """Run the model on this process's share, some batches at a time."""
        positions = positions[even_slices(len(positions), self._world)[self.rank]]
        batches = iter(track(images.batches(positions), -(-len(positions) // images.batch_size), what, self._progress))
        while some := list(itertools.islice(batches, _BATCHES)):
            statistics = Statistics.join([self._statistics(*batch) for batch in some])
            places = enumerate(statistics.positions.tolist())
            unreadable = [place for place, position in places if position in images.unreadable]
            for part in (*statistics.layers.values(), statistics.samples.pixels, statistics.samples.features):
                if part is not None:
                    part[unreadable] = torch.nan
            yield statistics

    def _statistics(self, positions: Tensor, batch: Tensor) -> Statistics:
        capture = MapCapture(self._watched, summary=map_statistics, model=self._model)
        capture.samples.class_names = self._class_names
        with probing(self._model, self._buffers) as call, capture:
            call(batch.to(self._device, self._dtype))
        usable, _, notes = usable_layers(capture.maps, len(batch))
        self._notes |= notes
        layers = {name: layer.maps for name, layer in usable.items()}
        return Statistics(positions, layers, capture.samples.collected(len(batch)))


def _merged(parts: Iterable[Mapping[Any, str]]) -> dict[Any, str]:
    return {key: text for part in parts for key, text in part.items()}


def _unusable_notes(
    unreadable: Mapping[int, str],
    unusable: Iterable[int],
    count: int,
    files: Sequence[str] | None,
    images: str,
    then: str,
) -> dict[str, str]:
    """Note images at positions that cannot be read, and others that cannot be used, as they give NaN."""

    def first(positions: Iterable[int]) -> str:
        position = min(positions)
        return f"the first at position {position}" + (f", {files[position]}" if files else "")

    notes = {}
    if unreadable:
        where = f"{first(unreadable)} ({unreadable[min(unreadable)]})"
        notes[f"unreadable {images}"] = f"{len(unreadable)} of the {count} {images} cannot be read, {where}: {then}."
    if nonfinite := {*unusable}.difference(unreadable):
        found = f"{len(nonfinite)} of the {count} {images} give NaN or infinite values"
        notes[f"nonfinite {images}"] = f"{found}, {first(nonfinite)}: {then}."
    return notes


def _pictures(images: ImageSource, shown: list[int], others: ImageSource, ordinary: list[int]) -> Tensor | None:
    """Small pictures of the images shown, scaled as those of the reference; None if they cannot be drawn."""
    if not 1 <= len(images.shape) <= 4:
        return None
    chosen, known = (
        torch.cat([shrink(batch, _SIDE) for _, batch in source.batches(positions)])
        for source, positions in ((images, shown), (others, ordinary))
    )
    return drawn(chosen, known)
