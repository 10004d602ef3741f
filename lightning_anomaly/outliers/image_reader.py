"""Read images for a search: run a model on them, and describe what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.progress import track
from lightning_anomaly.images.image_source import ImageSource, scaled
from lightning_anomaly.images.thumbnails import black_and_white, shrink_images, to_bytes
from lightning_anomaly.network.features import FeatureLayer, SampleCapture, SampleStatistics
from lightning_anomaly.network.forward import copy_for_model, isolated_calls, pieces_to_run
from lightning_anomaly.network.layer_maps import hooked
from lightning_anomaly.outliers.fingerprints import Fingerprints
from lightning_anomaly.scores.pixels import describe_pixels

_SIDE = 256  # largest side of an image in the report (pixels)
_AT_ONCE = 2**22  # values of images described and scored together: for a few, calls take longer than the work


class Batch(NamedTuple):
    """What is known of n images, on the CPU: positions `(n,)`, statistics, fingerprints and labels."""

    positions: Tensor
    samples: SampleStatistics
    fingerprints: Fingerprints
    labels: list[str | None]

    @staticmethod
    def join(parts: Sequence[Batch]) -> Batch:
        """Join parts."""
        positions, samples, fingerprints, labels = zip(*parts, strict=True)
        joined = SampleStatistics.join(samples), Fingerprints.join(fingerprints), [*chain.from_iterable(labels)]
        return Batch(torch.cat(positions), *joined)


def describe_whole(whole: Tensor) -> tuple[SampleStatistics, Fingerprints]:
    """Describe whole images by their pixels alone."""
    samples = SampleStatistics(describe_pixels(scaled(whole)), tuple(whole.shape[1:]))
    return samples, Fingerprints.of(whole)


@dataclass(eq=False)
class ImageReader:
    """Runs a model on images, and describes what it sees.

    The first images set the layer of the features, and what is drawn black and white, unless given.
    """

    model: nn.Module
    class_names: Sequence[str] | None
    progress: bool | None
    feature_layer: FeatureLayer | None = None
    limits: Tensor | None = None

    def batches(self, source: ImageSource, positions: Sequence[int], description: str) -> Iterator[Batch]:
        """Describe images, several batches at once if they are small."""
        names = tuple(source.class_names if self.class_names is None else self.class_names)
        steps = -(-len(positions) // source.batch_size)
        batches = iter(track(source.with_whole(positions, describe_whole), steps, description, self.progress))
        at_once = max(1, _AT_ONCE // (source.batch_size * source.numel))
        while group := list(islice(batches, at_once)):
            chosen, images, whole = zip(*group, strict=True)
            places = torch.cat(chosen)
            if isinstance(whole[0], Tensor):
                joined = torch.cat([part.cpu() for part in whole])
                whole = (describe_whole(joined),)
                if self.limits is None:
                    self.thumbnails(joined)
            pixels, fingerprints = zip(*whole, strict=True)
            if self.feature_layer is None:
                self._run_model([images[0][:2]])  # finds the layer, for which all convolutions are hooked
            seen, statistics = SampleStatistics.join(pixels), self._run_model(images)
            count = 0 if statistics.logits is None else statistics.logits.shape[1]
            known = names if len(names) == count or (count, len(names)) == (1, 2) else ()
            statistics = statistics._replace(pixels=seen.pixels, shape=seen.shape, class_names=known)
            unreadable = [row for row, place in enumerate(places.tolist()) if place in source.unreadable]
            for part in (statistics.pixels, statistics.features):
                if part is not None:
                    part[unreadable] = torch.nan
            yield Batch(places, statistics, Fingerprints.join(fingerprints), source.labels(places.tolist()))

    def thumbnails(self, whole: Tensor) -> Tensor | None:
        """Draw whole images small; None if they are neither images nor volumes."""
        if whole.ndim not in (4, 5):
            return None
        small = shrink_images(whole, _SIDE)
        if self.limits is None:
            self.limits = black_and_white(small)
        return to_bytes(small, self.limits)

    def _run_model(self, batches: Sequence[Tensor]) -> SampleStatistics:
        capture = SampleCapture(self.model, feature_layer=self.feature_layer)
        with isolated_calls(self.model) as call, hooked(capture.hooks):
            for images in chain.from_iterable(pieces_to_run(batch, self.model) for batch in batches):
                call(copy_for_model(images, self.model))
                capture.end_pass(len(images))
        self.feature_layer = capture.feature_layer
        return capture.collected(sum(map(len, batches)))


def open_scaled(images: Any, argument: str, batch_size: int | None, **options: Any) -> ImageSource:
    """Open images of a floating-point type, see `ImageSource`, or raise ValueError."""
    source = ImageSource(images, argument, batch_size, **options)
    if not source.dtype.is_floating_point:
        raise ValueError(f"Parameter `{argument}` should hold scaled floating-point images. Found {source.dtype}.")
    return source
