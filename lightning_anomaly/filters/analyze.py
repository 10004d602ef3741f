"""Analyze the filters of a model: from its feature maps on a probe to a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.notes import nonfinite_note, warn_of
from lightning_anomaly._internal.progress import track
from lightning_anomaly._internal.tabular import listed
from lightning_anomaly._internal.threads import torch_in_threads
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.isolation import isolated_samples
from lightning_anomaly.filters.kept_maps import keep_maps
from lightning_anomaly.filters.layer_report import (
    NONFINITE,
    LayerReport,
    join_layer_parts,
    outlier_samples,
    shown_clustering,
    smallest_share,
    verdicts_of,
)
from lightning_anomaly.filters.pca import reduce_maps
from lightning_anomaly.filters.settings import AnalysisSettings, checked_settings
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.thumbnails import draw_images
from lightning_anomaly.network.features import SampleCapture, SampleStatistics
from lightning_anomaly.network.forward import run_model
from lightning_anomaly.network.layer_maps import LayerMaps, MapCapture, join_batches, usable_layers
from lightning_anomaly.network.layers import convolution_notes, select_layers
from lightning_anomaly.scores.pixels import describe_pixels
from lightning_anomaly.scores.sample_table import view_columns
from lightning_anomaly.scores.views import SampleView, view_samples

KnownLayers = dict[bytes, LayerReport]  # the last results, by hashes of the maps that they are of
_FILTER_BATCH = 64  # most filters per batch; ResNet-50 takes 4% longer with 32 or 128, a third longer with 8


def analyze(
    model: nn.Module,
    inputs: Any,
    *,
    layers: Iterable[str] | None = None,
    settings: AnalysisSettings | None = None,
    progress: bool | None = None,
    keep_images: bool = False,
    batch_size: int | None = None,
) -> AnomalyReport:
    """Run a model on a probe and analyze the filters of its convolutions.

    The model runs in evaluation mode without gradients. Its flags, buffers and hooks and torch's random state are
    restored, also after an exception.

    Args:
        model: Any model, on any device.
        inputs: The probe: a tensor `(N, ...)`, a Dataset or a DataLoader. It is moved to the model's device. A data set
            is read in its own order, whatever the loader's. Images are the first tensor of floats, or of images in
            bytes, in a batch. Unreadable images are left out, and the others are numbered without them.
        layers: Names of the layers to analyze; None takes every convolution.
        settings: See `AnalysisSettings`; None takes the defaults.
        progress: Whether to show progress bars on stderr. None shows them after two seconds, if stderr is a terminal or
            a notebook's.
        keep_images: Whether the report keeps small images of the probe and some of the maps, for
            `report.save_html(path)`.
        batch_size: Largest number of images per forward pass; None takes that of the DataLoader, or 64.

    Returns:
        The report. Its `notes` say what could not be analyzed and are also issued as warnings.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a layer does not exist, or `inputs` holds no images or images of several sizes.

    Examples:
        >>> inputs = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> inputs[7] *= 30
        >>> conv = nn.Conv2d(1, 1, 1, bias=False)
        >>> _ = nn.init.ones_(conv.weight)
        >>> report = analyze(conv, inputs)
        >>> report.count, report.layers[""].outliers_of(0)
        (1, [7])
    """
    settings = checked_settings(settings)
    probe = ImageSource(inputs, "inputs", batch_size)
    capture = MapCapture(
        select_layers(model, layers),
        rectify=settings.rectify,
        max_map_side=settings.max_map_side,
        samples=SampleCapture(model, describe=describe_pixels, keep_images=keep_images),
    )
    run_model(model, probe, capture, progress)
    notes = convolution_notes(model, layers)
    report = analyze_maps(capture.maps, settings, notes, samples=capture.samples, progress=progress)
    notes = {**report.notes, **probe.notes()}
    count = len(probe.positions) - len(probe.unreadable)
    if report.layers and report.n_samples != count:
        notes["samples"] = (
            f"The layers give {report.n_samples} maps for the {count} samples of `inputs`, as for patches or frames. "
            "The report numbers the maps and not the samples of `inputs`."
        )
    warn_of(notes)
    return replace(report, notes=notes, maps=keep_maps(report.layers, capture.maps) if keep_images else {})


def analyze_maps(
    maps: Mapping[str, LayerMaps],
    settings: AnalysisSettings,
    notes: Mapping[str, str] | None = None,
    *,
    samples: SampleCapture | None = None,
    progress: bool | None = False,
    known: KnownLayers | None = None,
) -> AnomalyReport:
    """Analyze the maps and the samples of a `MapCapture`; layers without usable maps are left out with a note."""
    usable, n_samples, left_out = usable_layers(maps)
    sample_statistics = SampleStatistics() if samples is None else samples.collected(n_samples)
    layers, views = analyze_layers(usable, settings, sample_statistics, progress=progress, known=known)
    notes = {**(notes or {}), **left_out, **(samples.notes if samples else {})}
    return make_anomaly_report(layers, views, n_samples, settings, notes, sample_statistics.images)


def analyze_layers(
    maps: Mapping[str, LayerMaps],
    settings: AnalysisSettings,
    samples: SampleStatistics,
    *,
    progress: bool | None = False,
    known: KnownLayers | None = None,
) -> tuple[dict[str, LayerReport], dict[str, SampleView]]:
    """Analyze all filters of the `maps`, and score the samples; layers without filters are left out.

    Layers whose maps are `known` from last time, as those of a frozen backbone, keep their results.
    """
    hashes = {} if known is None else dict(zip(maps, torch_in_threads(_maps_hash, maps.values()), strict=True))
    found = {name: known[value] for name, value in hashes.items() if known and value in known}
    changed = [name for name in maps if name not in found]
    batches = [(name, filters) for name in changed for filters in _filter_batches(maps[name], settings)]
    # The longest tasks come first, so that all threads end at about the same time.
    tasks: list[Callable[[], Any]] = [partial(view_samples, samples)]
    tasks += [partial(analyze_filters, maps[name], filters, settings) for name, filters in batches]
    results = iter(track(torch_in_threads(lambda task: task(), tasks), len(tasks), "filters", progress))
    views: dict[str, SampleView] = next(results)
    parts: dict[str, list[LayerReport]] = {}
    for (name, _), report in zip(batches, results, strict=True):
        parts.setdefault(name, []).append(report)
    found |= {name: join_layer_parts(reports) for name, reports in parts.items()}
    layers = {name: found[name] for name in maps if name in found}
    if known is not None:
        known.clear()
        known.update({hashes[name]: report for name, report in layers.items()})
    return layers, views


def _maps_hash(layer: LayerMaps) -> bytes:
    """Hash all that the analysis of a layer depends on."""
    assert layer.zeros is not None
    values = layer.batches[0]
    hashed = hashlib.sha256(f"{layer.count} {layer.size} {values.shape[1:]} {values.dtype}".encode())
    for part in (*layer.batches, *layer.extremes, layer.zeros):
        hashed.update(part.cpu().contiguous().numpy().data)
    return hashed.digest()


def _filter_batches(layer: LayerMaps, settings: AnalysisSettings) -> list[slice]:
    """Split the filters of a layer into batches that fit into the memory allowed."""
    filters, values = layer.batches[0].shape[1], layer.batches[0].shape[2:].numel()
    # A filter takes a few copies of its maps, or a few numbers per sample and component.
    filter_bytes = 8 * layer.count * (4 * values + 8 * settings.max_components)
    fitting = settings.max_memory_mb * 10**6 // (filter_bytes * torch.get_num_threads())
    size = max(1, min(fitting, _FILTER_BATCH))
    return [slice(first, first + size) for first in range(0, filters, size)]


def analyze_filters(layer: LayerMaps, filters: slice, settings: AnalysisSettings) -> LayerReport:
    """Analyze some filters of a layer: principal components, mixtures, verdicts, isolated samples."""
    from lightning_anomaly.filters.mixtures import cluster_filters  # late, as numba takes long to import

    layer = layer.select(filters)
    maps, extremes = layer.maps.cpu(), join_batches(layer.extremes).cpu().transpose(0, 1)
    reduction = reduce_maps(maps, settings.engine)
    varying = reduction.varying.nonzero()[:, 0]
    points = reduction.points[varying]
    clustering = cluster_filters(points, settings)
    outliers = outlier_samples(clustering, settings.rare_fraction, settings.rule)
    isolated = isolated_samples(points, settings.rare_fraction, extremes[varying])
    shown = shown_clustering(clustering, outliers, settings.rare_fraction)
    rows = torch.arange(len(varying), device=varying.device)
    labels = clustering.labels[rows, shown]

    def per_filter(values: Tensor) -> Tensor:
        """Fill in zeros for the filters that were not clustered."""
        full = values.new_zeros(len(reduction.points), *values.shape[1:])
        full[varying] = values
        return full

    return LayerReport(
        verdicts=verdicts_of(per_filter(outliers.any(1)), reduction.constant, reduction.finite),
        n_components=per_filter(clustering.n_components[shown]),
        calinski_harabasz=per_filter(clustering.calinski_harabasz[rows, shown]),
        smallest_share=per_filter(smallest_share(labels)),
        clusters=per_filter(labels.to(torch.uint8)),
        points=reduction.points.float(),
        outliers=per_filter(outliers),
        isolated=per_filter(isolated),
        explained=reduction.explained,
        sparsity=layer.sparsity,
        map_size=layer.size or (),
        analyzed_size=tuple(maps.shape[2:]),
        nonfinite=layer.nonfinite,
    )


def make_anomaly_report(
    layers: Mapping[str, LayerReport],
    views: Mapping[str, SampleView],
    n_samples: int,
    settings: AnalysisSettings,
    notes: Mapping[str, str],
    images: Tensor | None,
) -> AnomalyReport:
    """Make the report of these layers and small images, with notes on what could not be analyzed."""
    notes = dict(notes)
    for name, layer in layers.items():
        if count := len(layer.filters(NONFINITE)):
            where = "in their maps"
            if samples := layer.nonfinite.nonzero()[:, 0].tolist():
                where += f" of {'samples' if len(samples) > 1 else 'sample'} {listed(samples)}"
            notes |= nonfinite_note(name, count, len(layer.verdicts), f"{where} and are not analyzed")
    if layers and n_samples < settings.smallest_probe:
        notes["few samples"] = (
            f"The probe has {n_samples} {'sample' if n_samples == 1 else 'samples'}; for a cluster to be rare, at "
            f"least {settings.smallest_probe} are needed with `rare_fraction = {settings.rare_fraction}` and "
            f"`max_components = {settings.max_components}`."
        )
    drawn = None if images is None else draw_images(images)
    return AnomalyReport(layers, n_samples, asdict(settings), notes, view_columns(views), drawn)
