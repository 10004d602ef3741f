"""The probe of a validation: take its maps while the validation step runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lightning_anomaly._internal.processes import rank_and_world
from lightning_anomaly.callbacks._run_loss import RunLoss
from lightning_anomaly.filters.across_processes import analyze_across_processes
from lightning_anomaly.filters.analyze import KnownLayers, analyze_maps
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.settings import AnalysisSettings
from lightning_anomaly.images.batches import BatchLabels, are_renamed, first_tensor, name_labels
from lightning_anomaly.images.dataset_facts import class_names, dataset_folder, in_drawn_order
from lightning_anomaly.images.loaders import first_loader, shuffles, unpadded_length
from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.layer_maps import MapCapture, most_samples
from lightning_anomaly.scores.label_score import predicted_label_view
from lightning_anomaly.scores.pixels import describe_pixels
from lightning_anomaly.scores.sample_table import view_columns


@dataclass(eq=False)
class Probe:
    """The maps of the first `size` samples of a validation, over all processes, and what is known of these samples."""

    trainer: Any
    module: Any
    layers: dict[str, nn.Module]
    size: int
    settings: AnalysisSettings
    loss: RunLoss

    def __post_init__(self) -> None:
        self._seen = 0  # samples in the batches so far
        self._data = getattr(first_loader(self.trainer.val_dataloaders), "dataset", None)
        self._labels = BatchLabels()
        self.capture = MapCapture(
            self.layers,
            limit=-(-self.size // rank_and_world()[1]),  # samples of this process
            rectify=self.settings.rectify,
            max_map_side=self.settings.max_map_side,
            samples=SampleCapture(
                self.module,
                describe=describe_pixels,
                class_names=class_names(self._data),
                keep_images=True,
            ),
        )

    def before_probe_batch(self, batch: Any) -> None:
        """Hook the layers for the validation step to come, and keep small images of its samples."""
        # If no layer gives usable maps, count the samples of the batches instead.
        capture = self.capture
        if capture.full or not (most_samples(capture.maps) or self._seen < capture.limit):
            return
        capture.attach()
        images = first_tensor(batch)
        if images is not None:
            self._labels.add(range(self._seen, self._seen + len(images)), batch, images)
            self._seen += len(images)
            capture.samples.take_images(images)

    @torch.inference_mode(False)
    @torch.no_grad()
    def analyze_probe(self, notes: Mapping[str, str], known: KnownLayers) -> AnomalyReport:
        """Analyze the maps of all processes, see `analyze_layers`; a collective call."""
        loaders, maps, samples = self.trainer.val_dataloaders, self.capture.maps, self.capture.samples
        if rank_and_world()[1] > 1:
            limit = min(self.size, unpadded_length(loaders))
            report = analyze_across_processes(maps, self.settings, notes, samples=samples, limit=limit, known=known)
        else:
            report = analyze_maps(maps, self.settings, notes, samples=samples, known=known)
        targets, names = (None, None) if shuffles(loaders) else in_drawn_order(loaders)
        report = replace(report, notes={**report.notes, **probe_class_notes(targets or [], report.n_samples)})
        # A user's sampler may give processes other samples, and a layer may get several parts of each image.
        if rank_and_world()[1] > 1 or report.n_samples > self._seen:
            return report
        labels_of, numbers = self.loss.labels("val", None), self._labels.numbers
        renamed = labels_of.renames or are_renamed(numbers.get(labels_of.column, {}), targets)
        class_names = () if renamed else samples.class_names
        labels = name_labels(labels_of.at(numbers, range(report.n_samples)), class_names)
        names, folder = names and names[: report.n_samples], dataset_folder(self._data)
        columns = {**report.columns} | ({"class": [label or "" for label in labels]} if any(labels) else {})
        columns |= {"name": names} if names else {}
        logits = samples.collected(report.n_samples).logits
        view = None if logits is None or not any(labels) else predicted_label_view(logits, labels, class_names)
        columns |= {} if view is None else view_columns({"label": view})
        return replace(report, columns=columns, folder=folder)


def probe_class_notes(labels: Sequence[int], samples: int) -> dict[str, str]:
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
