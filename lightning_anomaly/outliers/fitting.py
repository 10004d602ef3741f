"""Fit to a reference, or to the searched images themselves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.loaders import shuffled
from lightning_anomaly.network.features import FeatureLayer
from lightning_anomaly.outliers.fingerprints import Fingerprints
from lightning_anomaly.outliers.image_reader import Batch, ImageReader
from lightning_anomaly.scores.label_score import Label
from lightning_anomaly.scores.views import FittedView, SampleView, fit_views, larger_scores, score_views

MIN_REFERENCE, MAX_REFERENCE = 100, 4000  # images, the latter by default
_FEWEST, _ENOUGH = 3, 8  # images of a class that is judged, and so many that judge it well


class ReferenceImages(NamedTuple):
    """Fingerprints of a reference, an index of the m usable images `(m,)`, and their names, or else positions."""

    fingerprints: Fingerprints
    usable: Tensor
    names: list[str | int]
    files: list[str]


class DetectorState(NamedTuple):
    """The state of a fitted detector."""

    views: dict[str, FittedView]  # by name
    calibration: dict[str, Tensor]  # sorted scores `(m,)` of other images in each view, the larger as "larger"
    n_reference: int  # images that were used
    shape: tuple[int, ...]  # of an image
    whole_shape: tuple[int, ...] | None  # of the whole images that came with the images
    limits: Tensor | None  # drawn black and white, see `black_and_white`; None if such images cannot be drawn
    feature_layer: FeatureLayer | None  # where features and logits come from, if there are any
    label: Label | None  # the classes of the reference, unless they are unknown or tell nothing
    label_calibration: dict[str, Tensor] = {}  # of images of these classes: "larger", "content" and "label"
    reference: ReferenceImages | None = None  # of which copies are sought
    whites: Mapping[str, float] = {}  # of files of more than 8 bits, see `FolderImages`


def fit_to_reference(reader: ImageReader, source: ImageSource, limit: int) -> tuple[DetectorState, dict[str, str]]:
    """Fit to up to `limit` images of a reference; return also notes."""
    if len(source) < MIN_REFERENCE:
        raise ValueError(
            f"Parameter `reference` should hold at least {MIN_REFERENCE} images to learn from. Found {len(source)}."
        )
    source.positions = shuffled(range(len(source)))[:limit]  # of which notes tell
    batch = Batch.join([*reader.batches(source, source.positions, "reference")])
    finite = _finite_rows(source, batch)
    usable, count = finite.nonzero()[:, 0], int(finite.sum())
    samples = batch.samples.select(usable)
    most, half = 3 * count // 8, count // 2
    rest = samples.select(slice(half, None))
    views = fit_views(samples.select(slice(most)), samples.select(slice(most, half)))
    if not views:
        raise ValueError(
            f"Parameter `{source.argument}` should hold images whose pixels or features vary. Found neither, in "
            f"images of shape {tuple(source.shape)}."
        )
    scored = score_views(views, rest)
    calibration = _sorted_scores(scored)
    labels = [batch.labels[place] for place in usable.tolist()]
    label = Label.fit(samples.select(slice(half)), labels[:half]) if "content" in views else None
    notes = source.notes(batch.positions[~finite].tolist()) | _search_notes(source, views, label, labels)
    label_calibration = {}
    if label is not None:
        scored, _ = label.score_by_class(rest, labels[half:], scored)
        label_calibration = _sorted_scores(scored, ~scored["label"].scores.isnan())
    places = batch.positions[usable].tolist()
    names = places if source.names is None else [source.names[place] for place in places]
    files = ["" if source.names is None else os.path.join(source.folder, name) for name in names]
    shapes, drawn = (source.shape, source.whole_shape), (reader.limits, reader.feature_layer)
    known = ReferenceImages(batch.fingerprints, usable, names, files), source.whites
    return DetectorState(views, calibration, count, *shapes, *drawn, label, label_calibration, *known), notes


def fit_to_searched(
    reader: ImageReader, source: ImageSource, limit: int
) -> tuple[DetectorState, dict[str, str], list[Batch]]:
    """Fit to up to `limit` of the images that are to be searched; return also notes, and what was read."""
    count = len(source)
    if count > limit:
        chosen = _positions_by_class(source, limit)
    else:  # the first batch is spread over all images
        stride = -(-count // source.batch_size)
        chosen = [position for start in range(stride) for position in range(start, count, stride)]
    batches = [*reader.batches(source, chosen, "reference")]
    batch = Batch.join(batches)
    views, label = dict[str, FittedView](), None
    if count < MIN_REFERENCE:
        finite = batch.samples.finite_rows(count)
        notes = {
            "few images": f"There are no scores, as {count} images are too few to learn from: give at least "
            f"{MIN_REFERENCE}, or ordinary images as `reference`."
        }
    else:
        finite = _finite_rows(source, batch)
        order = batch.positions.argsort()  # so that sums do not depend on the batches
        order = order[finite[order]]
        samples, labels = batch.samples.select(order), [batch.labels[place] for place in order.tolist()]
        views = fit_views(samples)
        label = Label.fit(samples, labels) if "content" in views else None
        notes = _search_notes(source, views, label, labels)
    shapes = source.shape, source.whole_shape
    state = DetectorState(views, {}, int(finite.sum()), *shapes, reader.limits, reader.feature_layer, label)
    return state, notes, batches


def _positions_by_class(source: ImageSource, limit: int) -> list[int]:
    """Draw positions at random, but some of each class first, as far as classes are known before images are read."""
    order = shuffled(range(len(source)))
    known = source.labels_before_reading
    labels = [known[position] for position in order]
    sizes, drawn, urgency = Counter(labels), Counter[Any](), list[tuple[float, float]]()
    numbers = {label: number for number, label in enumerate(sizes)}
    for label in labels:
        place, drawn[label] = drawn[label], drawn[label] + 1
        if label is None or place >= _ENOUGH:
            urgency.append((2, place / sizes[label]))  # of the rest, the same share of each class
        else:  # fewer than three give no scores, so rather three of some classes than two of each
            urgency.append((0, numbers[label]) if place < _FEWEST else (1, place))
    chosen = sorted(range(len(order)), key=urgency.__getitem__)[:limit]
    return [order[place] for place in sorted(chosen)]


def _finite_rows(source: ImageSource, batch: Batch) -> Tensor:
    """Return which images have finite statistics `(n,)`, or raise ValueError if most have none."""
    finite = batch.samples.finite_rows(len(batch.positions))
    if 2 * int(finite.sum()) <= len(finite):
        raise ValueError(
            f"Parameter `{source.argument}` should hold images that give finite values. Found {int(finite.sum())} of "
            f"{len(finite)}: look for unreadable images, NaN in the images and values beyond the precision of the "
            "model."
        )
    return finite


def _search_notes(
    source: ImageSource, views: Mapping[str, FittedView], label: Label | None, labels: Iterable[str | None]
) -> dict[str, str]:
    """Note the view that is missing, and labels that tell nothing."""
    notes = {}
    if "content" not in views:
        notes["no content"] = "There are no content scores: the model gives no features that vary."
    if "look" not in views:
        notes["no look"] = (
            f"There are no look scores: samples of shape {tuple(source.shape)} are no images of at least 4 pixels "
            "along each axis, or all alike."
        )
    classes = {*labels} - {None}
    if classes and label is None and "content" in views:
        found = f"{len(classes)} {'classes' if len(classes) > 1 else 'class'}"
        notes["labels"] = (
            f"The folders or labels of `{source.argument}` ({found}) tell nothing about what the model sees: there are "
            "no label scores, and each image is compared with all others."
        )
    return notes


def scores_with_larger(views: Mapping[str, SampleView], unscored: Tensor) -> dict[str, Tensor]:
    """Return the scores of images in each view, and the larger of look and content; `unscored` without these."""
    scores = {name: view.scores for name, view in views.items()}
    return scores | {"larger": larger_scores(scores, unscored)}


def _sorted_scores(views: Mapping[str, SampleView], chosen: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    scores = scores_with_larger(views, torch.zeros(0, device="cpu"))
    return {name: values[chosen].sort().values for name, values in scores.items()}
