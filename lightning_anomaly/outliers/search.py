"""The steps of a detector: run the model on images, fit to a reference, score and report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.progress import track
from lightning_anomaly.images.source import ImageSource, scaled
from lightning_anomaly.network.features import FeatureLayer, SampleCapture, SampleStatistics, join_known
from lightning_anomaly.network.forward import placed, probing
from lightning_anomaly.network.hooks import hooked
from lightning_anomaly.outliers.duplicates import DuplicateGroup, Fingerprints, find_duplicates, members
from lightning_anomaly.outliers.report import OutlierReport
from lightning_anomaly.pages.thumbnails import KEPT, black_and_white, drawn, shrink
from lightning_anomaly.scores.pixels import describe_pixels
from lightning_anomaly.scores.scale import conformal_p_values
from lightning_anomaly.scores.scorer import FittedView, SampleView, fit_views, join_views, judge, larger

MIN_REFERENCE = 100
_SIDE = 128  # largest side of a picture in the report (pixels)
_AT_ONCE = 2**22  # values of images described and scored together: for a few, calls take longer than the work


class DetectorState(NamedTuple):
    """The state of a fitted detector.

    Attributes:
        views: The fitted views, by name.
        calibration: Scores of the calibration images, sorted `(m,)`: the larger ones as "larger", and of each view.
        n_reference: Number of reference images that were used.
        shape: Shape of an image.
        picture_shape: Shape of the whole pictures that came with the images, None without these.
        limits: The values that are drawn black and white, see `black_and_white`; None if images of this shape cannot
            be drawn.
        feature_layer: Where features and logits come from, None if there are none.
    """

    views: dict[str, FittedView]
    calibration: dict[str, Tensor]
    n_reference: int
    shape: tuple[int, ...]
    picture_shape: tuple[int, ...] | None
    limits: Tensor | None
    feature_layer: FeatureLayer | None


class Batch(NamedTuple):
    """What is known of n images, on the CPU: their positions `(n,)`, statistics, small pictures and fingerprints."""

    positions: Tensor
    samples: SampleStatistics
    pictures: Tensor | None  # see `drawn`
    fingerprints: Fingerprints


class Gallery(NamedTuple):
    """Pictures of the images with the largest finite scores, in the order of the report.

    Attributes:
        positions: Positions of the images in their data set `(n,)`.
        scores: Their scores `(n,)`.
        pictures: Their pictures.
    """

    positions: Tensor
    scores: Tensor
    pictures: Tensor | None

    @staticmethod
    def join(parts: Sequence[Gallery]) -> Gallery:
        """Join parts, and keep the images with the largest scores."""
        every, found, drawings = zip(*parts, strict=True)
        positions, scores, pictures = torch.cat(every), torch.cat(found), join_known(drawings)
        best = positions.argsort()
        best = best[scores[best].isfinite()]
        best = best[scores[best].argsort(descending=True, stable=True)][:KEPT]
        return Gallery(positions[best], scores[best], None if pictures is None else pictures[best])


class ReferenceImages(NamedTuple):
    """The images of a reference: fingerprints, an index of the m usable ones `(m,)`, and their files, or else positions."""

    fingerprints: Fingerprints
    usable: Tensor
    names: list[str | int]


class Run:
    """Runs a model on images to fit to them, to score them and to report."""

    def __init__(
        self,
        model: nn.Module,
        class_names: Sequence[str] | None,
        progress: bool | None,
        feature_layer: FeatureLayer | None = None,
        limits: Tensor | None = None,
    ) -> None:
        self._limits = limits  # see `DetectorState`
        self._model, self._feature_layer, self._class_names, self._progress = (
            model,
            feature_layer,
            class_names,
            progress,
        )

    def fit(
        self, images: Any, batch_size: int | None, limit: int, seed: int, is_own: bool
    ) -> tuple[DetectorState, dict[str, str], list[Batch], ReferenceImages | None]:
        """Fit to a reference, or with `is_own` to the images that are searched, all of which are scored by the fit.

        Return the fit, notes, and with `is_own` what is known of the images, else of the reference.
        """
        source = _opened(images, "images" if is_own else "reference", batch_size)
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed), device="cpu")
        if len(order) < MIN_REFERENCE and not is_own:
            raise ValueError(
                f"Parameter `reference` should hold at least {MIN_REFERENCE} images to learn from. Found {len(order)}."
            )
        chosen: list[int] = order[:limit].tolist()
        if is_own and len(order) <= limit:  # no seed matters; the first batch is spread over all images
            stride = -(-len(order) // source.batch_size)
            chosen = [position for start in range(stride) for position in range(start, len(order), stride)]
        if not is_own:
            source.positions = chosen  # of which notes tell
        batches = list(self._batches(source, chosen, "reference", draw=is_own))
        read, every, _, fingerprints = zip(*batches, strict=True)
        positions, samples = torch.cat(read), SampleStatistics.join(every)
        finite = samples.finite_rows(len(positions))
        usable, count = finite.nonzero()[:, 0], int(finite.sum())
        if is_own:  # in order, so that sums do not depend on the batches
            usable = usable[positions[usable].argsort()]
        samples = samples.select(usable)
        few = is_own and len(finite) < MIN_REFERENCE
        if 2 * count <= len(finite) and not few:
            raise ValueError(
                f"Parameter `{source.argument}` should hold images that give finite values. Found {count} of "
                f"{len(finite)}: look for unreadable images, NaN in the images and values beyond the precision of the "
                "model."
            )
        if is_own:
            views, calibration = {} if few else fit_views(samples), {}
        else:
            parts = slice(3 * count // 8), slice(3 * count // 8, count // 2), slice(count // 2, None)
            first, scale, rest = (samples.select(part) for part in parts)
            views = fit_views(first, scale)
            found = judge(views, rest)
            calibration = {name: values.sort().values for name, values in _scores_of(found, count - count // 2).items()}
        if not views and not few:
            raise ValueError(
                f"Parameter `{source.argument}` should hold images whose pixels or features vary. Found neither, in "
                f"images of shape {tuple(source.shape)}."
            )
        notes = {} if is_own else _unusable_notes(source, positions[~finite].tolist())
        if few:
            notes["few images"] = (
                f"There are no scores, as {len(finite)} images are too few to learn from: give at least "
                f"{MIN_REFERENCE}, or ordinary images as `reference`."
            )
        elif "content" not in views:
            notes["no content"] = "There are no content scores: the model gives no features that vary."
        if not few and "look" not in views:
            notes["no look"] = (
                f"There are no look scores: samples of shape {tuple(source.shape)} are no images of at least 4 pixels "
                "along each axis, or all alike."
            )
        fitted = DetectorState(
            views, calibration, count, source.shape, source.picture_shape, self._limits, self._feature_layer
        )
        if is_own:
            return fitted, notes, batches, None
        names = [place if source.names is None else source.names[place] for place in positions[usable].tolist()]
        return fitted, notes, [], ReferenceImages(Fingerprints.join(fingerprints), usable, names)

    def search(
        self,
        images: Any,
        batch_size: int | None,
        fitted: DetectorState,
        read: Sequence[Batch],
        rate: float,
        reference: ReferenceImages | None,
    ) -> OutlierReport:
        """Score all images and report on them; some are `read` already, to fit to them."""
        source = _opened(images, "images", batch_size)
        check_shape(source.shape, source.picture_shape, fitted)
        known = {position for batch in read for position in batch.positions.tolist()}
        remaining = [position for position in range(len(source)) if position not in known]
        batches = self._batches(source, remaining, "outlier scores")
        positions, parts, kept, shown = [], [], [], list[Gallery]()
        for batch in chain(read, batches):
            check_features(batch.samples, fitted)
            parts.append(judge(fitted.views, batch.samples))
            scored = _scores_of(parts[-1], len(batch.positions))
            shown = [Gallery.join([*shown, Gallery(batch.positions, scored["larger"], batch.pictures)])]
            positions.append(batch.positions)
            kept.append(batch.fingerprints)
        order = torch.cat(positions).argsort()
        views = join_views(parts, order)
        scores = _scores_of(views, len(source))
        scores["larger"][list(source.unreadable)] = torch.inf
        unusable = scores["larger"].isinf()
        notes = _unusable_notes(source, unusable.nonzero()[:, 0].tolist())
        usable = (~unusable).nonzero()[:, 0]
        duplicates, problem = _duplicates(kept, order[usable], usable.tolist(), reference)
        p_values = {name: torch.full_like(values, torch.nan) for name, values in scores.items()}
        p_values |= {name: conformal_p_values(scores[name], known) for name, known in fitted.calibration.items()}
        copied = source.pictures(members(duplicates)[:KEPT])
        copies = join_known([self._drawn(whole) for _, _, whole in copied])
        return OutlierReport(
            scores=scores["larger"],
            p_values=p_values.pop("larger"),
            views=views,
            view_p_values=p_values,
            n_reference=fitted.n_reference,
            n_calibration=len(fitted.calibration.get("larger", ())),
            false_discovery_rate=rate,
            images=shown[0].pictures if len(shown[0].positions) else None,
            notes=notes,
            names=source.names,
            unreadable=source.unreadable,
            duplicates=duplicates,
            duplicate_images=copies,
            duplicates_left_out=problem,
            skipped=source.skipped,
            feature_layer=str(fitted.feature_layer or "") if "content" in fitted.views else "",
        )

    def _batches(
        self, source: ImageSource, positions: Sequence[int], description: str, *, draw: bool = True
    ) -> Iterator[Batch]:
        """Yield what is known of images, of several batches if they are small; without `draw` they have no pictures."""
        if self._class_names is None:
            self._class_names = source.class_names
        steps = -(-len(positions) // source.batch_size)
        batches = iter(track(source.pictures(positions), steps, description, self._progress))
        count = max(1, _AT_ONCE // (source.batch_size * source.values))
        while group := list(islice(batches, count)):
            chosen, images, pictures = zip(*group, strict=True)
            places = torch.cat(chosen)
            whole = torch.cat([part.cpu() for part in pictures]) if len(group) > 1 else pictures[0]
            statistics = self.statistics(images, whole)
            fingerprints = Fingerprints.of(whole, statistics.features)
            unreadable = [row for row, place in enumerate(places.tolist()) if place in source.unreadable]
            for part in (statistics.pixels, statistics.features):
                if part is not None:
                    part[unreadable] = torch.nan
            drawings = self._drawn(whole) if draw or self._limits is None else None
            yield Batch(places, statistics, drawings if draw else None, fingerprints)

    def _drawn(self, pictures: Tensor) -> Tensor | None:
        """Draw pictures; the first ones set what is black and white."""
        if pictures.ndim not in (4, 5):
            return None
        small = shrink(pictures, _SIDE)
        if self._limits is None:
            self._limits = black_and_white(small)
        return drawn(small, self._limits)

    def statistics(self, batches: Sequence[Tensor], whole: Tensor) -> SampleStatistics:
        """Run the model on batches of images, and return their statistics, with the pixels of all whole pictures."""
        if self._feature_layer is None:
            self._run([batches[0][:2]])  # finds the feature_layer, for which all convolutions are hooked
        samples = self._run(batches)
        count = 0 if samples.logits is None else samples.logits.shape[1]
        names = tuple(self._class_names or ())
        class_names = names if len(names) == count or (count, len(names)) == (1, 2) else ()
        return samples._replace(
            pixels=describe_pixels(scaled(whole)), shape=tuple(whole.shape[1:]), class_names=class_names
        )

    def _run(self, batches: Sequence[Tensor]) -> SampleStatistics:
        """Run the model on batches of images, and return their features and logits."""
        capture = SampleCapture(self._model, feature_layer=self._feature_layer)
        with probing(self._model) as call, hooked([(module, capture, take) for module, take in capture.watched]):
            for images in batches:
                call(placed(images, self._model))
                capture.end_pass(len(images))
        self._feature_layer = capture.feature_layer
        return capture.collected(sum(map(len, batches)))


def _duplicates(
    parts: Sequence[Fingerprints], images: Tensor, positions: Sequence[int], reference: ReferenceImages | None
) -> tuple[list[DuplicateGroup], str]:
    """Find duplicates among images, an index into all parts, at some positions, and between these and a reference."""
    if reference is not None:
        images = torch.cat([images, reference.usable + sum(len(part.hashes) for part in parts)])
        parts = [*parts, reference.fingerprints]
    groups, problem = find_duplicates(Fingerprints.join(parts), images)
    names = [] if reference is None else reference.names
    found = []
    for group, identical in groups:
        searched = [positions[place] for place in group if place < len(positions)]
        known = [names[place - len(positions)] for place in group if place >= len(positions)]
        if searched:
            found.append(DuplicateGroup(searched, identical, known))
    return found, problem


def _scores_of(views: Mapping[str, SampleView], count: int) -> dict[str, Tensor]:
    """Return the scores of `count` images in each view, and the larger ones; NaN without views."""
    scores = {name: view.scores for name, view in views.items()}
    unscored = torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")
    return scores | {"larger": larger(scores.values()) if scores else unscored}


def check_features(samples: SampleStatistics, fitted: DetectorState) -> None:
    """Raise ValueError if the fit scores features, and samples lack them or have those of another layer."""
    if "content" in fitted.views and (samples.features is None or samples.feature_layer != fitted.feature_layer):
        raise ValueError(
            f"Parameter `images` should give features in the same layer as the reference: {fitted.feature_layer}. Found "
            f"{samples.feature_layer or 'none'}."
        )


def _opened(images: Any, argument: str, batch_size: int | None) -> ImageSource:
    source = images if isinstance(images, ImageSource) else ImageSource(images, argument, batch_size)
    check_scaled(argument, source.dtype)
    return source


def check_scaled(argument: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless images are of a floating-point type."""
    if not dtype.is_floating_point:
        raise ValueError(f"Parameter `{argument}` should hold scaled floating-point images. Found {dtype}.")


def check_shape(shape: Sequence[int], picture_shape: Sequence[int] | None, fitted: DetectorState) -> None:
    """Raise ValueError unless images, and whole pictures beside them, have the shapes of the reference."""
    found, expected = (
        f"{tuple(image)}{' with whole pictures, as of a `FolderImages`, ' + str(tuple(whole)) if whole else ''}"
        for image, whole in ((shape, picture_shape), (fitted.shape, fitted.picture_shape))
    )
    if found != expected:
        raise ValueError(
            f"Parameter `images` should hold images of the shape of the reference, {expected}. Found {found}."
        )


def _unusable_notes(source: ImageSource, unusable: Iterable[int]) -> dict[str, str]:
    """Note the unreadable images, and those of the `unusable` positions that give NaN."""
    notes, nonfinite = source.notes(), {*unusable}.difference(source.unreadable)
    if nonfinite:
        notes[f"nonfinite {source.argument}"] = (
            f"{len(nonfinite)} of the {len(source.positions)} images in `{source.argument}` give NaN or infinite "
            f"values, the first at {source.place(min(nonfinite))}: they are left out."
        )
    return notes
