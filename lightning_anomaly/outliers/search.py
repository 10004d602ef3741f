"""Score the images of a search by what was fitted, and report on them."""

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
from torch.nn.functional import normalize

from lightning_anomaly.images.folder_images import decoded_hashes
from lightning_anomaly.images.image_source import ImageSource, unusable_notes
from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.outliers.absolute_faults import file_facts, find_faults, pixel_faults
from lightning_anomaly.outliers.duplicates import DuplicateGroup, find_duplicates
from lightning_anomaly.outliers.fingerprints import SIDE, Fingerprints
from lightning_anomaly.outliers.fitting import DetectorState, ReferenceImages, scores_with_larger
from lightning_anomaly.outliers.image_reader import Batch, ImageReader
from lightning_anomaly.outliers.outlier_page import path_in_class
from lightning_anomaly.outliers.outlier_report import OutlierReport, mark_copies
from lightning_anomaly.scores.content_score import Content
from lightning_anomaly.scores.distributions import conformal_p_values
from lightning_anomaly.scores.label_score import Label, class_indices, is_clear
from lightning_anomaly.scores.sample_table import COLUMNS, sample_table
from lightning_anomaly.scores.views import score_views

_NEAREST = 3
_OF_LABELS = "label_score", "label_p_value", "label_reason"


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
    pictures = _draw_search_results(source, reader, report)
    skipped = {"name": [*source.skipped], "error": [*source.skipped.values()]}
    table = sample_table(skipped, range(len(source.skipped)), source.folder)
    return replace(report, skipped=table, whites=source.whites, pictures=pictures)


def score_source(
    reader: ImageReader, source: ImageSource, state: DetectorState, read: Sequence[Batch] = ()
) -> dict[str, np.ndarray]:
    """Score all images, of which some are `read` already, to fit to them; see `OutlierDetector.search_part`."""
    check_shape(source, state)
    known = {position for batch in read for position in batch.positions.tolist()}
    remaining = [position for position in range(len(source)) if position not in known]
    batches = chain(read, reader.batches(source, remaining, "outlier scores"))
    nearest = NearestImages.of(read, state.label.names) if read and state.label is not None else None
    scored = [_score_batch(batch, source, state, place < len(read), nearest) for place, batch in enumerate(batches)]
    return join_columns(scored)


def _score_batch(
    batch: Batch, source: ImageSource, state: DetectorState, fitted: bool, nearest: NearestImages | None
) -> dict[str, np.ndarray]:
    """Score a batch, which is one of the fit or not; return the columns of a part, and positions."""
    _check_searched_features(batch.samples, state)
    views, looks_like = score_views(state.views, batch.samples), list[str]()
    if state.label is not None:
        views, looks_like = state.label.score_by_class(batch.samples, batch.labels, views, left_out=fitted)
    places, grays, pixels = batch.positions.tolist(), batch.fingerprints.grays, batch.samples.pixels
    errors = [source.unreadable.get(place, "") for place in places]
    finite = batch.samples.finite_rows(len(places)) & torch.tensor([not error for error in errors], device="cpu")
    scores = scores_with_larger(views, torch.where(finite, torch.nan, torch.inf).double())
    columns: dict[str, Any] = {
        "position": batch.positions,
        "hash": batch.fingerprints.hashes,
        "gray": None if grays is None else grays.flatten(1),
        # Whole images are those of a `FolderImages`, in shades of 0 to 1.
        "faults": None if pixels is None or source.whole_shape is None else pixel_faults(pixels),
        "looks_like": looks_like or None,
        "error": errors,
        "name": source.names and [source.names[place] for place in places],
        "split": source.splits and [source.splits[place] for place in places],
        "class": [label or "" for label in batch.labels],
    }
    if nearest is not None and (features := batch.samples.features) is not None:
        columns["nearest"] = nearest.find(batch.positions, features, batch.labels, looks_like)
    columns |= {f"{name}_reason": view.reasons for name, view in views.items()}
    for values, ending in ((scores, "score"), (_search_p_values(scores, state), "p_value")):
        columns |= {ending if name == "larger" else f"{name}_{ending}": column for name, column in values.items()}
    return {
        name: column.numpy() if isinstance(column, Tensor) else np.array(column, dtype=object)
        for name, column in columns.items()
        if column is not None
    }


def join_columns(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the columns that all parts have, sorted by positions if these are among them."""
    known = [name for name in parts[0] if all(name in part for part in parts)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in known}
    order = joined.pop("position").argsort() if "position" in joined else slice(None)
    return {name: values[order] for name, values in joined.items()}


def notes_of_parts(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return what is noted of joined parts, as of one search of the whole, each note once."""
    count, notes = len(columns["score"]), dict[str, str]()
    for note, images in Counter(note for text in columns.get("note", ()) for note in text.splitlines()).items():
        notes[note] = note if images == count else f"{note} (Of {images} of the {count} images.)"
    unreadable = {place: str(error) for place, error in enumerate(columns["error"]) if error}
    names = [*columns["name"]] if "name" in columns else None
    nonfinite = np.isinf(columns["score"]).nonzero()[0].tolist()
    return notes | unusable_notes("images", unreadable, nonfinite, count, names)


def make_outlier_report(
    part: Mapping[str, np.ndarray],
    state: DetectorState,
    notes: Mapping[str, str],
    folder: str,
    read: Sequence[Batch] = (),
) -> OutlierReport:
    """Report on joined parts: decide which images are duplicates and significant among all; some are `read`."""
    columns: dict[str, Any] = {
        name: values.tolist() if values.dtype == object else torch.from_numpy(values) for name, values in part.items()
    }
    count, names = len(columns["score"]), columns.get("name")
    files = [""] * count if names is None else [os.path.join(folder, name) for name in names]
    grays = columns["gray"].view(-1, SIDE, SIDE) if "gray" in columns else None
    usable = (~columns["score"].isinf()).nonzero()[:, 0].tolist()
    duplicates, problem = _duplicate_groups(Fingerprints(columns["hash"], grays), usable, files, state.reference)
    if read and state.label is not None:
        _judge_without_copies(columns, duplicates, read, state.label)
    has_labels = "label_score" in columns and not columns["label_score"].isnan().all()
    if has_labels:
        known = [*zip(columns["class"], columns["looks_like"], columns["label_score"].isnan().tolist(), strict=True)]
        columns["clear"] = [*map(is_clear, columns["label_reason"])]
        columns["looks_like"] = ["" if unknown else other for _, other, unknown in known]
        if names is not None:
            pairs = zip(names, columns["class"], columns["looks_like"], strict=True)
            columns["move_to"] = [path_in_class(folder, name, *pair) for name, *pair in pairs]
    else:  # no image is of a class of the reference
        columns = {name: values for name, values in columns.items() if name not in (*_OF_LABELS, "looks_like")}
    if (nearest := columns.pop("nearest", None)) is not None:
        sides = [tuple([place for place in side if place >= 0] for side in sides) for sides in nearest.tolist()]
        columns["nearest"] = [both if any(both) else None for both in sides]
    faults = columns.pop("faults", None)
    if names is not None:
        facts = file_facts(files)
        columns |= facts if any(facts["bytes"]) else {}  # else they are on another machine
        if faults is not None:
            columns["faults"] = find_faults(faults, [*zip(facts["width"], facts["height"], strict=True)])
    samples = sample_table({n: v for n, v in columns.items() if n in COLUMNS}, range(count), folder)
    return OutlierReport(
        samples=mark_copies(samples, duplicates),
        n_reference=state.n_reference,
        n_calibration=len(state.calibration.get("larger", ())),
        notes=notes,
        folder=folder,
        duplicates=duplicates,
        duplicates_left_out=problem,
        feature_layer=str(state.feature_layer or "") if "content" in state.views else "",
    )


def _judge_without_copies(
    columns: Mapping[str, Any], groups: Iterable[DuplicateGroup], read: Sequence[Batch], label: Label
) -> None:
    """Judge images that are filed in several classes again, so that none speaks against its copies."""
    filed = columns["class"]
    groups = [group for group in groups if len({filed[position] for position in group.positions} - {""}) > 1]
    if not groups:
        return  # as nearly always: joining what was read takes a copy of all features
    batch, nearest = Batch.join(read), NearestImages.of(read, label.names)
    rows, features = {position: row for row, position in enumerate(batch.positions.tolist())}, batch.samples.features
    assert features is not None
    for group in groups:
        places = [position for position in group.positions if position in rows]
        labels = [batch.labels[rows[position]] for position in places]
        if len({*labels} - {None}) > 1:
            copies = features[[rows[position] for position in places]]
            view, looks_like = label.score_copies(copies, labels)
            columns["label_score"][places] = view.scores
            columns["nearest"][places] = nearest.find(torch.tensor(places), copies, labels, looks_like)
            for position, reason, other in zip(places, view.reasons, looks_like, strict=True):
                columns["label_reason"][position], columns["looks_like"][position] = reason, other


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
    rows = [
        (entry.position, row["path"], row.get("nearest") if part.compares else None)
        for part in report.lists()
        for entry, (_, row) in zip(part.entries, part.rows, strict=True)
    ]
    drawn = {position: None for position, path, _ in rows if not os.path.isfile(path)}
    if drawn:
        drawn |= dict.fromkeys(place for _, _, nearest in rows for places in nearest or () for place in places)
    places = [place for place in drawn if place not in source.unreadable]
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
    groups, problem = find_duplicates(Fingerprints(hashes, fingerprints.grays), images)
    duplicates = []
    for group, identical, correlations in groups:
        searched = [positions[place] for place in group if place < len(positions)]
        others = [known[place - len(positions)] for place in group if place >= len(positions)]
        duplicates.append(DuplicateGroup(searched, identical, others, correlations))
    return [group for group in duplicates if group.positions], problem


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


def check_shape(source: ImageSource, state: DetectorState | ImageSource) -> None:
    """Raise ValueError unless images, and whole images beside them, have the shapes of the reference."""
    found, expected = (
        f"{each.shape}"
        + (f" with whole images, as of a `FolderImages`, {each.whole_shape}" if each.whole_shape else "")
        for each in (source, state)
    )
    if found != expected:
        raise ValueError(
            f"Parameter `images` should hold images of the shape of the reference, {expected}. Found {found}."
        )


class NearestImages(NamedTuple):
    """The m images of a fit, among which those that are most alike are sought."""

    names: Sequence[str]  # of the classes
    classes: Tensor  # of the images, -1 for none `(m,)`
    positions: Tensor  # `(m,)`
    features: Tensor  # of norm 1 `(m, D)`

    @classmethod
    def of(cls, batches: Sequence[Batch], names: Sequence[str]) -> NearestImages:
        """Take the images of some batches, which have features."""
        features = torch.cat([part for batch in batches if (part := batch.samples.features) is not None])
        classes = class_indices(names, [*chain.from_iterable(batch.labels for batch in batches)])
        classes[~features.sum(1).isfinite()] = -1
        return cls(names, classes, torch.cat([batch.positions for batch in batches]), normalize(features.float()))

    def find(
        self, positions: Tensor, features: Tensor, labels: Sequence[str | None], looks_like: Sequence[str]
    ) -> Tensor:
        """Return the nearest images of its class and of the one it looks like, if another, `(n, 2, 3)`; -1 for none."""
        nearest = torch.full((len(positions), 2, _NEAREST), -1, device="cpu")
        pairs = [*zip(labels, looks_like, strict=True)]
        accused = [row for row, (own, other) in enumerate(pairs) if own not in (None, other)]
        if accused:
            alike = normalize(features[accused].float()) @ self.features.T
            alike[positions[accused, None] == self.positions] = -torch.inf
            for side, names in enumerate(zip(*(pairs[row] for row in accused), strict=True)):
                of_class = class_indices(self.names, names)[:, None] == self.classes
                near = alike.masked_fill(~of_class, -torch.inf).topk(_NEAREST)
                nearest[accused, side] = self.positions[near.indices].where(near.values.isfinite(), -1)
        return nearest
