"""The steps of a detector: run the model on images, fit to a reference, score and report."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.maps import map_statistics
from lightning_anomaly.capture.probe import probing, usable_layers
from lightning_anomaly.checks import check_integer
from lightning_anomaly.distributed import broadcast_result, even_slices, rank_and_world
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.images.thumbnails import KEPT, drawn, shrink
from lightning_anomaly.notes import left_out
from lightning_anomaly.outliers.combine import conformal_p_values
from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.outliers.scorer import (
    Judgement,
    Scorer,
    Statistics,
    finite_images,
    fit_scorers,
    notes_on_filters,
)
from lightning_anomaly.progress import track

MIN_REFERENCE = 100
_BATCHES = 4  # scored in one operation
_SIDE = 128  # largest side of a picture in the report (pixels)
_SCALE_IMAGES = 256  # reference images whose range is shown from black to white


class Fitted(NamedTuple):
    """The state of a fitted detector.

    Attributes:
        scorer: Scores images.
        calibration: Scores of the calibration images, sorted `(m,)`.
        n_reference: Number of reference images that were used.
        shape: Shape of an image.
        ranges: Smallest and largest values of reference images, as images of two pixels; None if images of this shape
            cannot be drawn.
        weights: Shapes of the layers' weights, by layer.
        n_classes: Number of classes in the reference, 0 if unknown.
    """

    scorer: Scorer
    calibration: Tensor
    n_reference: int
    shape: Sequence[int]
    ranges: Tensor | None
    weights: Mapping[str, Sequence[int]]
    n_classes: int


_Share = tuple[list[Statistics], dict[int, str], dict[str, str]]  # statistics, `{position: error}`, notes
_Scored = tuple[list[Judgement], int, dict[int, str], dict[str, str]]  # number of images, `{position: error}`, notes


class Run:
    """Runs a model on this process's share of the images; between the steps, processes exchange their results.

    All processes use the buffers of process 0, since those of a BatchNorm differ. With `alone` there is no exchange.
    """

    def __init__(self, model: nn.Module, seed: int, progress: bool | None, *, alone: bool = False) -> None:
        self.seed = check_integer("seed", seed, 0, 2**64 - 1)
        rank, self._world = (0, 1) if alone else rank_and_world()
        self._rank, self._model = rank, model
        self._progress = progress if rank == 0 else False
        self._notes: dict[str, str] = {}
        self._class_names: tuple[str, ...] = ()
        tensors = [*model.parameters(), *model.buffers()]
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
        self._buffers: dict[str, Tensor] = {}
        if self._world > 1:
            self._buffers = broadcast_result(lambda: {name: buffer.cpu() for name, buffer in model.named_buffers()})

    def collect(
        self,
        images: Any,
        argument: str,
        batch_size: int | None,
        limit: int,
        watched: Mapping[str, nn.Module],
        cross: bool,
    ) -> _Share:
        """Collect statistics of this process's share of a reference."""
        source = self._source = _opened(images, argument, batch_size)
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(self.seed), device="cpu")
        if len(order) < MIN_REFERENCE:
            advice = " To score fewer images, pass ordinary images as `reference`." if cross else ""
            raise ValueError(
                f"Parameter `{argument}` should hold at least {MIN_REFERENCE} images to learn from. "
                f"Found {len(order)}.{advice}"
            )
        self._chosen: list[int] = order[:limit].tolist()
        self._watched = watched
        batches = [
            statistics._replace(layers={name: part.cpu() for name, part in statistics.layers.items()})
            for statistics in self._statistics_of(source, self._chosen, watched, "reference")
        ]
        return batches, source.unreadable, self._notes

    def fit(self, shares: Sequence[_Share], cross: bool) -> tuple[Fitted, dict[str, str], list[Judgement]]:
        """Fit to the whole reference, in process 0; return the fit, notes and, with `cross`, the images' scores."""
        batches, unreadable, notes_of = zip(*shares, strict=True)
        source, watched = self._source, self._watched
        statistics, nonfinite_filters = finite_images([*itertools.chain(*batches)], source.argument)
        count = len(statistics.positions)
        first, half = slice(3 * count // 8), slice(count // 2, None)
        if cross:
            halves = statistics.select(slice(count // 2)), statistics.select(half)
            scorer, second = fit_scorers([halves, halves[::-1]], source.argument)
            judged = [scorer.judge(halves[1]), second.judge(halves[0])]
        else:
            scale = statistics.select(slice(first.stop, half.start))
            (scorer,) = fit_scorers([(statistics.select(first), scale)], source.argument)
            judged = [scorer.judge(statistics.select(half))]
        notes = notes_on_filters(scorer, nonfinite_filters)
        if not cross:
            unused = {*self._chosen}.difference(statistics.positions.tolist())
            notes |= _unusable_notes(
                _merged(unreadable), unused, len(self._chosen), source.names, "reference images", "they are ignored"
            )
        for name in watched:
            if name not in scorer.layers:  # a more specific note from running the model replaces this one
                notes |= left_out(name, "its maps of the reference are not finite or do not vary")
        fitted = Fitted(
            scorer,
            torch.cat([part.scores for part in judged]).sort().values,
            count,
            source.shape,
            _ranges(source, statistics.positions[:_SCALE_IMAGES].tolist()),
            {name: weight_shape(watched[name]) for name in scorer.layers},
            source.n_classes,
        )
        return fitted, notes | _merged(notes_of), judged if cross else []

    def score(
        self,
        images: Any,
        argument: str,
        batch_size: int | None,
        fitted: Fitted,
        watched: Mapping[str, nn.Module],
        scored: set[int],
    ) -> _Scored:
        """Score this process's share of the images that are not `scored` yet."""
        source = self._source = _opened(images, argument, batch_size)
        check_shape(argument, source.shape, fitted)
        remaining = [position for position in range(len(source)) if position not in scored]
        scorer = fitted.scorer.to(self.device)
        judged = [
            self.judge(scorer, part) for part in self._statistics_of(source, remaining, watched, "outlier scores")
        ]
        return judged, len(source), source.unreadable, self._notes

    def judge(self, scorer: Scorer, statistics: Statistics) -> Judgement:
        """Score images that have maps in all layers of the scorer."""
        missing = [name for name in scorer.layers if statistics.layers and name not in statistics.layers]
        if missing:
            raise ValueError(
                f"Images should give maps in the same layers as the reference. Found images without maps in {missing}: "
                "pass the names of other layers as `layers`."
            )
        return scorer.judge(statistics)

    def report(
        self, fitted: Fitted, scored: Sequence[_Scored], judged: Sequence[Judgement] | None, rate: float
    ) -> OutlierReport:
        """Join all scores into a report, in process 0."""
        parts, counts, unreadable, notes_of = zip(*scored, strict=True)
        source = self._source
        if len({*counts}) > 1:
            raise ValueError(
                f"Parameter `{source.argument}` should hold the same images in every process. Found {[*counts]} images "
                "in the processes."
            )
        _, scores, layer, filters, views = Judgement.join([*(judged or ()), *itertools.chain(*parts)])
        notes = _merged(notes_of)
        infinite = scores.isinf().nonzero()[:, 0].tolist()
        broken = _merged(unreadable)
        notes |= _unusable_notes(broken, infinite, len(source), source.names, "images", "they have no score")
        if fitted.n_classes == 1 < source.n_classes:
            notes["one class"] = (
                f"The reference images are of one class and the searched images of {source.n_classes}, so most of "
                "these will have large scores: pass a `reference` of all classes."
            )
        calibration = fitted.calibration if judged is None else scores[scores.isfinite()].sort().values
        report = OutlierReport(
            scores=scores,
            p_values=conformal_p_values(scores, calibration),
            layers=tuple(fitted.scorer.layers),
            layer=layer,
            filters=filters,
            views=views,
            n_reference=fitted.n_reference,
            n_calibration=len(fitted.calibration) if judged is None else 0,
            false_discovery_rate=rate,
            notes=notes,
            names=source.names,
            unreadable=broken,
        )
        return replace(report, images=_pictures(source, report.top(KEPT), fitted.ranges))

    def _statistics_of(
        self, source: ImageSource, positions: Sequence[int], watched: Mapping[str, nn.Module], description: str
    ) -> Iterator[Statistics]:
        """Yield statistics of this process's share, several batches at a time."""
        positions = positions[even_slices(len(positions), self._world)[self._rank]]
        self._class_names = source.class_names
        batches = iter(
            track(source.batches(positions), -(-len(positions) // source.batch_size), description, self._progress)
        )
        while group := list(itertools.islice(batches, _BATCHES)):
            statistics = Statistics.join([self.statistics(*batch, watched) for batch in group])
            places = enumerate(statistics.positions.tolist())
            unreadable = [place for place, position in places if position in source.unreadable]
            for part in (*statistics.layers.values(), statistics.samples.pixels, statistics.samples.features):
                if part is not None:
                    part[unreadable] = torch.nan
            yield statistics

    def statistics(
        self, positions: Tensor, batch: Tensor, watched: Mapping[str, nn.Module], filters: bool = True
    ) -> Statistics:
        """Run the model on a batch and return its statistics; those of filters may be left out."""
        capture = MapCapture(dict(watched), summary=map_statistics if filters else _empty, model=self._model)
        capture.samples.class_names = self._class_names
        with probing(self._model, self._buffers) as call, capture:
            call(batch.to(self.device, self._dtype))
        usable, _, notes = usable_layers(capture.maps, len(batch))
        self._notes |= notes
        layers = {name: layer.maps for name, layer in usable.items()} if filters else {}
        return Statistics(positions, layers, capture.samples.collected(len(batch)))


def weight_shape(module: nn.Module) -> list[int]:
    """Return the shape of a layer's weight, [0] for a layer without a weight."""
    weight = getattr(module, "weight", None)  # None in a norm without affine parameters
    return [0] if weight is None else list(weight.shape)


def _empty(maps: Tensor) -> Tensor:
    """Summarize maps by no numbers, so that they are only counted."""
    return maps.new_empty(len(maps), 0)


def _opened(images: Any, argument: str, batch_size: int | None) -> ImageSource:
    source = images if isinstance(images, ImageSource) else ImageSource(images, argument, batch_size)
    if not source.dtype.is_floating_point:
        raise ValueError(f"Parameter `{argument}` should hold scaled floating-point images. Found {source.dtype}.")
    return source


def check_shape(argument: str, shape: Sequence[int], fitted: Fitted) -> None:
    """Raise ValueError unless images have the shape of the reference."""
    if tuple(shape) != tuple(fitted.shape):
        raise ValueError(
            f"Parameter `{argument}` should hold images of the shape of the reference, {tuple(fitted.shape)}. Found "
            f"{tuple(shape)}."
        )


def _merged(parts: Iterable[Mapping[Any, str]]) -> dict[Any, str]:
    return {key: text for part in parts for key, text in part.items()}


def _unusable_notes(
    unreadable: Mapping[int, str],
    unusable: Iterable[int],
    count: int,
    files: Sequence[str] | None,
    images: str,
    consequence: str,
) -> dict[str, str]:
    """Note unreadable images `{position: error}` and the other unusable positions, whose images give NaN."""

    def first(positions: Iterable[int]) -> str:
        position = min(positions)
        return f"the first at position {position}" + (f", {files[position]}" if files else "")

    notes = {}
    if unreadable:
        where = f"{first(unreadable)} ({unreadable[min(unreadable)]})"
        notes[f"unreadable {images}"] = (
            f"{len(unreadable)} of the {count} {images} cannot be read, {where}: {consequence}."
        )
    if nonfinite := {*unusable}.difference(unreadable):
        sentence = (
            f"{len(nonfinite)} of the {count} {images} give NaN or infinite values, {first(nonfinite)}: {consequence}."
        )
        notes[f"nonfinite {images}"] = sentence
    return notes


def _ranges(source: ImageSource, positions: list[int]) -> Tensor | None:
    """Return the smallest and largest value of each image and channel as images; None if they cannot be drawn."""
    if not 1 <= len(source.shape) <= 4:
        return None
    small = torch.cat([shrink(batch, _SIDE) for _, batch in source.batches(positions)])
    ends = torch.stack([small.flatten(2).amin(2), small.flatten(2).amax(2)], 2)
    return ends[:, :, None] if small.ndim == 4 else ends


def _pictures(source: ImageSource, positions: list[int], ranges: Tensor | None) -> Tensor | None:
    """Draw small pictures of images, scaled to the range of the reference; None if they cannot be drawn."""
    if ranges is None or not positions:
        return None
    return drawn(torch.cat([shrink(batch, _SIDE) for _, batch in source.batches(positions)]), ranges)
