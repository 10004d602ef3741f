"""Search for outliers: fit to a reference or to the images themselves, score and report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_anomaly.images.folder_images import decoded_hashes
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.loaders import shuffled
from lightning_anomaly.network.features import FeatureLayer, SampleStatistics
from lightning_anomaly.outliers.absolute_faults import find_faults, pixel_faults
from lightning_anomaly.outliers.duplicates import DuplicateGroup, find_duplicates
from lightning_anomaly.outliers.fingerprints import SIDE, Fingerprints
from lightning_anomaly.outliers.image_reader import Batch, ImageReader
from lightning_anomaly.outliers.nearest_images import NearestImages
from lightning_anomaly.outliers.outlier_report import TOP, OutlierReport
from lightning_anomaly.scores.content_score import Content
from lightning_anomaly.scores.label_score import Label
from lightning_anomaly.scores.scale import conformal_p_values
from lightning_anomaly.scores.views import ODD_VIEWS, VIEWS, FittedView, SampleView, fit_views, larger, score_views

MIN_REFERENCE = 100
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
    half = count // 2
    parts = slice(3 * count // 8), slice(3 * count // 8, half), slice(half, None)
    first, scale, rest = (samples.select(part) for part in parts)
    views = fit_views(first, scale)
    if not views:
        raise ValueError(
            f"Parameter `{source.argument}` should hold images whose pixels or features vary. Found neither, in "
            f"images of shape {tuple(source.shape)}."
        )
    found = score_views(views, rest)
    calibration = _sorted_scores(found)
    labels = [batch.labels[place] for place in usable.tolist()]
    label = Label.fit(samples.select(slice(half)), labels[:half]) if "content" in views else None
    notes = source.notes(batch.positions[~finite].tolist())
    notes |= _search_notes(source, views, label, labels)
    label_calibration = {}
    if label is not None:
        found, _ = label.score_by_class(rest, labels[half:], found)
        label_calibration = _sorted_scores(found, ~found["label"].scores.isnan())
    names = batch.positions[usable].tolist()
    files = [""] * len(names)
    if source.names is not None:
        names = [source.names[place] for place in names]
        files = [os.path.join(source.folder, name) for name in names]
    shapes = source.shape, source.whole_shape
    layer = reader.feature_layer
    known = ReferenceImages(batch.fingerprints, usable, names, files), source.whites
    return DetectorState(
        views, calibration, count, *shapes, reader.limits, layer, label, label_calibration, *known
    ), notes


def search_without_reference(reader: ImageReader, source: ImageSource, limit: int) -> OutlierReport:
    """Fit to up to `limit` of the images, score all of them and report on them."""
    count = len(source)
    if count > limit:
        chosen = _positions_by_class(source, limit)
    else:  # the first batch is spread over all images
        stride = -(-count // source.batch_size)
        chosen = [position for start in range(stride) for position in range(start, count, stride)]
    batches = [*reader.batches(source, chosen, "reference")]
    batch = Batch.join(batches)
    views: dict[str, FittedView] = {}
    label = None
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
    return search_source(reader, source, state, notes, read=batches)


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


def search_source(
    reader: ImageReader,
    source: ImageSource,
    state: DetectorState,
    notes: Mapping[str, str],
    read: Sequence[Batch] = (),
) -> OutlierReport:
    """Score all images and report on them; some are `read` already, to fit to them, which gave the `notes`."""
    part = score_source(reader, source, state, read)
    notes = {**notes, **source.notes(np.isinf(part["score"]).nonzero()[0].tolist())}
    report = make_outlier_report(part, state, notes, source.folder, read)
    return replace(
        report, skipped=source.skipped, whites=source.whites, pictures=_draw_search_results(source, reader, report)
    )


def score_source(
    reader: ImageReader, source: ImageSource, state: DetectorState, read: Sequence[Batch] = ()
) -> dict[str, np.ndarray]:
    """Score all images, of which some are `read` already, to fit to them; see `OutlierDetector.search_part`."""
    _check_shape(source.shape, source.whole_shape, state)
    known = {position for batch in read for position in batch.positions.tolist()}
    remaining = [position for position in range(len(source)) if position not in known]
    batches = chain(read, reader.batches(source, remaining, "outlier scores"))
    whole = source.whole_shape is not None  # of a `FolderImages`, in shades of 0 to 1
    nearest = NearestImages.of(read, state.label.names) if read and state.label is not None else None
    part = join_columns(
        [_score_batch(batch, state, number < len(read), whole, nearest) for number, batch in enumerate(batches)]
    )
    count = len(source)
    errors = [source.unreadable.get(place, "") for place in range(count)]
    part["score"][[error != "" for error in errors]] = np.inf
    texts: dict[str, Sequence[str] | None] = {"error": errors, "name": source.names, "split": source.splits}
    texts["filed_under"] = [label or "" for label in source.labels(range(count))]
    return part | {name: _text_column(known) for name, known in texts.items() if known is not None}


def _score_batch(
    batch: Batch, state: DetectorState, fitted: bool, whole: bool, nearest: NearestImages | None
) -> dict[str, np.ndarray]:
    """Score a batch, which is one of the fit or not; return the columns of a part, and positions."""
    _check_searched_features(batch.samples, state)
    views, looks_like = score_views(state.views, batch.samples), list[str]()
    if state.label is not None:
        views, looks_like = state.label.score_by_class(batch.samples, batch.labels, views, left_out=fitted)
    finite = batch.samples.finite_rows(len(batch.positions))
    scores = _search_scores(views, torch.where(finite, torch.nan, torch.inf).double())
    tensors: dict[str, Tensor | None] = {"position": batch.positions, "hash": batch.fingerprints.hashes}
    tensors["gray"] = None if (looks := batch.fingerprints.looks) is None else looks.flatten(1)
    tensors["faults"] = pixel_faults(batch.samples.pixels) if whole and batch.samples.pixels is not None else None
    if nearest is not None and (features := batch.samples.features) is not None:
        tensors["nearest"] = nearest.find(batch.positions, features, batch.labels, looks_like)
    for values, ending in ((scores, "score"), (_search_p_values(scores, state), "p_value")):
        tensors |= {ending if name == "larger" else f"{name}_{ending}": found for name, found in values.items()}
    columns = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
    texts = {f"{name}_reason": view.reasons for name, view in views.items()} | {"looks_like": looks_like}
    return columns | {name: _text_column(known) for name, known in texts.items() if known}


def _text_column(texts: Sequence[str]) -> np.ndarray:
    return np.array(texts, dtype=object)


def join_columns(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the columns that all parts have, sorted by positions if these are among them."""
    known = [name for name in parts[0] if all(name in part for part in parts)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in known}
    order = joined.pop("position").argsort() if "position" in joined else slice(None)
    return {name: values[order] for name, values in joined.items()}


def make_outlier_report(
    part: Mapping[str, np.ndarray],
    state: DetectorState,
    notes: Mapping[str, str],
    folder: str,
    read: Sequence[Batch] = (),
) -> OutlierReport:
    """Report on joined parts: decide which images are duplicates and significant among all; some are `read`."""
    numbers = {name: torch.from_numpy(values) for name, values in part.items() if values.dtype != object}
    texts: dict[str, list[str]] = {name: values.tolist() for name, values in part.items() if name not in numbers}
    scores, names = numbers["score"], texts.get("name")
    files = [""] * len(scores) if names is None else [os.path.join(folder, name) for name in names]
    looks = numbers["gray"].view(-1, SIDE, SIDE) if "gray" in numbers else None
    usable = (~scores.isinf()).nonzero()[:, 0]
    duplicates, problem = _duplicate_groups(
        Fingerprints(numbers["hash"], looks), usable.tolist(), files, state.reference
    )
    if read and state.label is not None:
        _judge_without_copies(numbers, texts, duplicates, read, state.label)
    views = {
        name: SampleView(numbers[f"{name}_score"], tuple(texts[f"{name}_reason"]))
        for name in VIEWS
        if f"{name}_score" in numbers
    }
    if "label" in views and views["label"].scores.isnan().all():  # no image is of a class of the reference
        del views["label"]
    return OutlierReport(
        scores=scores,
        p_values=numbers["p_value"],
        views=views,
        view_p_values={name: numbers[f"{name}_p_value"] for name in views},
        n_reference=state.n_reference,
        n_calibration=len(state.calibration.get("larger", ())),
        notes=notes,
        names=names,
        folder=folder,
        unreadable={place: error for place, error in enumerate(texts["error"]) if error},
        duplicates=duplicates,
        duplicates_left_out=problem,
        faults=find_faults(numbers["faults"], files) if names is not None and "faults" in numbers else {},
        nearest=numbers.get("nearest"),
        feature_layer=str(state.feature_layer or "") if "content" in state.views else "",
        splits=texts.get("split"),
        labels=[label or None for label in texts["filed_under"]] if any(texts["filed_under"]) else None,
        looks_like=texts["looks_like"] if "label" in views else None,
    )


def _judge_without_copies(
    numbers: Mapping[str, Tensor],
    texts: Mapping[str, list[str]],
    groups: Iterable[DuplicateGroup],
    read: Sequence[Batch],
    label: Label,
) -> None:
    """Judge images that are filed in several classes again, so that none speaks against its copies."""
    batch, nearest = Batch.join(read), NearestImages.of(read, label.names)
    rows, features = {position: row for row, position in enumerate(batch.positions.tolist())}, batch.samples.features
    for group in groups:
        places = [position for position in group.positions if position in rows]
        labels = [batch.labels[rows[position]] for position in places]
        if len({*labels} - {None}) > 1 and nearest is not None and features is not None:
            copies = features[[rows[position] for position in places]]
            view, looks_like = label.score_copies(copies, labels)
            numbers["label_score"][places] = view.scores
            numbers["nearest"][places] = nearest.find(torch.tensor(places), copies, labels, looks_like)
            for position, *found in zip(places, view.reasons, looks_like, strict=True):
                texts["label_reason"][position], texts["looks_like"][position] = found


def _search_p_values(scores: Mapping[str, Tensor], state: DetectorState) -> dict[str, Tensor]:
    """Return the p-values of all scores; images with a label score are compared with those of the classes."""
    p_values = {name: torch.full_like(values, torch.nan) for name, values in scores.items()}
    p_values |= {name: conformal_p_values(scores[name], known) for name, known in state.calibration.items()}
    if "label" in scores:
        filed = ~scores["label"].isnan()
        for name, of_class in state.label_calibration.items():
            p_values[name] = torch.where(filed, conformal_p_values(scores[name], of_class), p_values[name])
    return p_values


def _draw_search_results(source: ImageSource, reader: ImageReader, report: OutlierReport) -> dict[int, Tensor]:
    """Draw the images small that are in lists, unless the page can read them from files."""
    listed = {row.position: None for tab in report.tabs() for row in tab.rows if not os.path.isfile(row.path)}
    if listed and report.nearest is not None:
        accused = report.filed_elsewhere[:TOP] + report.perhaps_elsewhere[:TOP]
        listed |= dict.fromkeys(report.nearest[accused].clamp(min=0).flatten().tolist())
    places = [place for place in listed if place is not None and place not in source.unreadable]
    pictures = dict[int, Tensor]()
    for positions, _, whole in source.with_whole(places):
        small = reader.thumbnails(whole)
        pictures |= {} if small is None else dict(zip(positions.tolist(), small, strict=True))
    return pictures


def _duplicate_groups(
    fingerprints: Fingerprints, positions: list[int], files: Sequence[str], reference: ReferenceImages | None
) -> tuple[list[DuplicateGroup], str]:
    """Find duplicates among the images at some positions, and between these and a reference."""
    images, known = torch.tensor(positions, dtype=torch.int64, device="cpu"), list[str | int]()
    files = [files[position] for position in positions]
    if reference is not None:
        images = torch.cat([images, reference.usable + len(fingerprints.hashes)])
        fingerprints = Fingerprints.join([fingerprints, reference.fingerprints])
        files, known = files + reference.files, reference.names
    hashes = fingerprints.hashes.clone()
    hashes[images] = decoded_hashes(hashes[images], files)
    groups, problem = find_duplicates(Fingerprints(hashes, fingerprints.looks), images)
    found = []
    for group, identical, correlations in groups:
        searched = [positions[place] for place in group if place < len(positions)]
        others = [known[place - len(positions)] for place in group if place >= len(positions)]
        if searched:
            found.append(DuplicateGroup(searched, identical, others, correlations))
    return found, problem


def _search_scores(views: Mapping[str, SampleView], unscored: Tensor) -> dict[str, Tensor]:
    """Return the scores of images in each view, and the larger of look and content; `unscored` without these."""
    scores = {name: view.scores for name, view in views.items()}
    odd = [values for name, values in scores.items() if name in ODD_VIEWS]
    return scores | {"larger": larger(odd) if odd else unscored}


def _sorted_scores(views: Mapping[str, SampleView], chosen: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    scores = _search_scores(views, torch.zeros(0, device="cpu"))
    return {name: values[chosen].sort().values for name, values in scores.items()}


def _check_searched_features(samples: SampleStatistics, state: DetectorState) -> None:
    """Raise ValueError if the fit scores features, and samples lack them or have those of another layer."""
    content = state.views["content"].model if "content" in state.views else None
    if not isinstance(content, Content):
        return
    width = 0 if samples.features is None else samples.features.shape[1]
    if samples.feature_layer != state.feature_layer or width != content.neighbors.shape[1]:
        found = f"{samples.feature_layer}, {width} of them" if width else "none"
        raise ValueError(
            "Parameter `images` should give features in the same layer as the reference: "
            f"{state.feature_layer}, {content.neighbors.shape[1]} of them. Found {found}."
        )


def _check_shape(shape: Sequence[int], whole_shape: Sequence[int] | None, state: DetectorState) -> None:
    """Raise ValueError unless images, and whole images beside them, have the shapes of the reference."""
    found, expected = (
        f"{tuple(image)}{' with whole images, as of a `FolderImages`, ' + str(tuple(whole)) if whole else ''}"
        for image, whole in ((shape, whole_shape), (state.shape, state.whole_shape))
    )
    if found != expected:
        raise ValueError(
            f"Parameter `images` should hold images of the shape of the reference, {expected}. Found {found}."
        )
