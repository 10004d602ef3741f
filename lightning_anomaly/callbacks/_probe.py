"""The probe of a validation: take its maps while the validation step runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.processes import rank_and_world
from lightning_anomaly.filters.across_processes import analyze_shared
from lightning_anomaly.filters.analyze import analyze_maps
from lightning_anomaly.filters.pictures import take_pictures
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.filters.settings import AnalysisSettings
from lightning_anomaly.images.loaders import first_loader, shuffles, unpadded_length
from lightning_anomaly.images.source import class_names, first_tensor, labels_and_names
from lightning_anomaly.network.forward import most_samples
from lightning_anomaly.network.hooks import MapCapture
from lightning_anomaly.pages.thumbnails import SIDE, shrink
from lightning_anomaly.scores.label import predicted_view
from lightning_anomaly.scores.pixels import describe_pixels


@dataclass(eq=False)
class Probe:
    """The maps of the first `size` samples of a validation, over all processes, and what is known of these samples."""

    trainer: Any
    module: Any
    layers: dict[str, nn.Module]
    size: int
    settings: AnalysisSettings
    notes: Mapping[str, str]
    keep_images: bool

    def __post_init__(self) -> None:
        settings = self.settings
        self._total_limit = min(self.size, unpadded_length(self.trainer.val_dataloaders))  # over all processes
        self._limit = -(-self.size // rank_and_world()[1])
        self._seen = 0  # samples in the batches so far
        self._images: list[Tensor] | None = [] if self.keep_images else None
        self.capture = MapCapture(
            self.layers,
            limit=self._limit,
            rectify=settings.rectify,
            max_map_side=settings.max_map_side,
            model=self.module,
            describe=describe_pixels,
        )

    def before_batch(self, batch: Any) -> None:
        """Hook the layers for the validation step to come, and keep small images of its samples."""
        taken = most_samples(self.capture.maps)
        # If no layer gives usable maps, count the samples of the batches instead.
        if self.capture.full or not (taken or self._seen < self._limit):
            return
        self.capture.attach()
        images = first_tensor(batch)
        self._seen += 0 if images is None else len(images)
        if images is None or images.ndim not in (4, 5) or not images.numel():
            self._images = None  # cannot be drawn
        elif self._images is not None:
            # Copies, as the model may change its input in place.
            self._images.append(shrink(images[: self._limit - taken], SIDE).clone())

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """Labels and names of files of the validation samples, if known, see `labels_and_names`."""
        loaders = self.trainer.val_dataloaders
        return {} if shuffles(loaders) else labels_and_names(loaders)

    @property
    def images(self) -> Tensor | None:
        """Small images of the samples; None if they cannot be drawn, or have several sizes.

        Their number may differ from that of the maps: a layer may get parts of a batch.
        """
        one_size = len({images.shape[1:] for images in self._images or ()}) == 1
        return torch.cat(self._images) if self._images and one_size else None

    @torch.inference_mode(False)
    @torch.no_grad()
    def analyze(self, *, with_maps: bool) -> tuple[AnomalyReport, Tensor | None]:
        """Analyze the maps of all processes, and keep some for the page; return the images too, if they were kept."""
        maps, images, captured = self.capture.maps, self.images, self.capture.samples
        captured.class_names = class_names(getattr(first_loader(self.trainer.val_dataloaders), "dataset", None))
        if rank_and_world()[1] > 1:
            return analyze_shared(
                maps,
                images,
                self.settings,
                self.notes,
                limit=self._total_limit,
                pictures=with_maps,
                samples=captured,
            )
        report = analyze_maps(maps, self.settings, self.notes, samples=captured)
        labels, logits = self.columns.get("labels", [])[: report.n_samples], captured.collected(report.n_samples).logits
        if logits is not None and len(labels) == len(logits):
            view = predicted_view(logits, labels, captured.class_names)
            report = report if view is None else replace(report, views={**report.views, "label": view})
        if with_maps:
            report = replace(report, pictures=take_pictures(report.layers, maps, images))
        return report, images


def class_notes(labels: Sequence[str], samples: int) -> dict[str, str]:
    """Note if evenly spaced samples of a validation, as many as in the probe, would have clearly more classes."""
    if not labels or not samples:
        return {}
    parts = labels[:samples], labels[:: -(-len(labels) // samples)], labels
    probe, spaced, total = (len({*part}) for part in parts)
    if probe >= 0.9 * spaced:  # there may be more classes than samples in a probe
        return {}
    return {
        "sorted": f"The first {samples} validation samples, which are the probe, have {probe} of {total} classes: "
        "shuffle the data set once, with a fixed seed, before it goes into the loader."
    }


@contextmanager
def unlogged(pl_module: Any) -> Iterator[None]:
    """Ignore what the module logs meanwhile, in its `forward` for example: these are not values of the validation."""
    before = {name: value for name, value in vars(pl_module).items() if name == "log"}  # set by a user
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]
        vars(pl_module).update(before)
