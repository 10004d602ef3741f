"""One analysis by several processes, each of which has seen some of the samples and analyzes some of the filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_anomaly.analysis import FilterSlice, analyze_slice, join_slices
from lightning_anomaly.browser.pictures import Pictures, join_pictures, take_pictures
from lightning_anomaly.capture.maps import STATISTICS, LayerMaps
from lightning_anomaly.capture.probe import most_samples, usable_layers
from lightning_anomaly.capture.samples import SampleCapture, SampleStatistics
from lightning_anomaly.distributed import (
    even_slices,
    exchange_filters,
    gather_results,
    rank_and_world,
    sample_order,
)
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.settings import AnalysisSettings


def analyze_shared(
    maps: dict[str, LayerMaps],
    images: Tensor | None,
    settings: AnalysisSettings,
    notes: Mapping[str, str],
    *,
    limit: int,
    pictures: bool,
    samples: SampleCapture | None = None,
) -> tuple[AnomalyReport, Tensor | None]:
    """Analyze the maps of all processes; a collective call, also for a process that has no maps.

    Each process gives the maps, which are removed as they are sent, the images `(n, C, H, W)` and what else is known
    of its own samples. Of all of them, `limit` samples are kept. The notes are the same everywhere; whether there are
    pictures, process 0 decides.

    Returns:
        The report, and the images of the probe `(N, C, H, W)`, None if unknown. Only process 0 has these, pictures, and
        `points` and `labels` of any samples.

    Raises:
        Exception: In all processes if one fails, see `gather_results`.
    """
    rank, world = rank_and_world()

    def describe() -> tuple[dict[str, LayerMaps], bool, SampleStatistics]:
        known = SampleStatistics() if samples is None else samples.collected(most_samples(maps))
        return {name: _header(layer) for name, layer in maps.items()}, pictures, known

    headers, (pictured, *_), all_known = zip(*gather_results(describe), strict=True)
    seen = [most_samples(header) for header in headers]
    layers = {name: _join_headers([header[name] for header in headers], limit) for name in headers[0]}
    usable, n_samples, left_out = usable_layers(layers)
    scorers = {name: place % world for place, name in enumerate(usable)}

    received = {}
    for name, layer in usable.items():
        received[name] = _exchange(maps[name], layer, [header[name].count for header in headers], scorers[name])
        maps[name] = LayerMaps()

    shown: list[tuple[FilterSlice, Tensor | None, Pictures | None]] = []

    def analyze() -> FilterSlice:
        shares, statistics = {}, {}
        for name, layer in usable.items():
            order = sample_order([header[name].count for header in headers], limit)
            rows, scored = (torch.cat(parts, 1)[:, order] for parts in received.pop(name))
            shares[name] = _slice_maps(layer, rows, even_slices(_filters(layer), world)[rank])
            if rank == scorers[name]:
                statistics[name] = [scored.transpose(0, 1)]
        known = _join_samples(all_known, seen, limit) if rank == world - 1 else SampleStatistics()
        part = analyze_slice(shares, statistics, settings, known)
        drawn = take_pictures(part.layers, shares, None, sum(map(_filters, usable.values()))) if pictured else None
        shown.append((part, images, drawn))
        return _without_points(part)

    parts: Sequence[FilterSlice] = gather_results(analyze)
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(shown[0], gathered)
    found_images = None
    if gathered is not None:
        parts, all_images, all_pictures = zip(*gathered, strict=True)
        found_images = _join_images(all_images, seen, limit)
    notes = {**notes, **left_out}
    if _same_samples(headers):
        notes["same samples"] = (
            "Every process seems to have seen the same samples: each is in the probe as often as there are processes, "
            "outliers hide each other, and samples are not numbered as those of the loader. Let Lightning deal them "
            "out (`use_distributed_sampler = True`), give a `DistributedSampler`, or shard an iterable data set."
        )
    report = join_slices(parts, list(usable), n_samples, settings, notes)
    if gathered is not None and pictured:
        report = replace(report, pictures=join_pictures(all_pictures, found_images, n_samples))
    return report, found_images


def _filters(layer: LayerMaps) -> int:
    return layer.batches[0].shape[1]


def _header(layer: LayerMaps) -> LayerMaps:
    """Copy a layer without its samples: the types and shapes of its maps and statistics stay."""
    batches, statistics = (
        [values.new_empty(0, *values.shape[1:], device="cpu") for values in batches[:1]]
        for batches in (layer.batches, layer.statistics)
    )
    zeros = None if layer.zeros is None else layer.zeros.cpu()
    return LayerMaps(batches, layer.count, layer.size, zeros, layer.problem, statistics)


def _join_headers(headers: Sequence[LayerMaps], limit: int) -> LayerMaps:
    """The header of a layer's maps in all processes, whose types and shapes must be the same."""
    seen = [header for header in headers if header.batches]
    problem = next((header.problem for header in headers if header.problem is not None), None)
    if (
        problem is None
        and len({(header.size, header.batches[0].dtype, header.batches[0].shape) for header in seen}) > 1
    ):
        problem = "its maps differ between processes"
    if problem is not None or not seen:
        return LayerMaps(problem=problem)
    count = sum(header.count for header in seen)
    kept = min(limit, count)
    # Sparsity is that of all samples seen, which may be a few more than those kept.
    zeros = torch.stack([header.zeros for header in seen if header.zeros is not None]).sum(0).double() * (kept / count)
    return LayerMaps(seen[0].batches, kept, seen[0].size, zeros, statistics=seen[0].statistics)


def _same_samples(headers: Sequence[Mapping[str, LayerMaps]]) -> bool:
    """Whether all processes have equally many zeros in each filter, and these numbers differ between filters."""
    zeros = [[[] if layer.zeros is None else layer.zeros.tolist() for layer in header.values()] for header in headers]
    return any(len({*layer}) > 2 for layer in zeros[0]) and all(process == zeros[0] for process in zeros)


def _exchange(
    local: LayerMaps, layer: LayerMaps, counts: Sequence[int], scorer: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Exchange maps, each followed by its statistics, by filter, and send the statistics of all filters to the scorer.

    Scores take the statistics of all filters of a layer.
    """
    filters, world = _filters(layer), len(counts)

    def statistics() -> Tensor:
        return torch.cat(local.statistics or layer.statistics).transpose(0, 1)

    def rows() -> Tensor:
        maps = torch.cat(local.batches or layer.batches)[..., None].flatten(2).transpose(0, 1)
        return torch.cat([maps, statistics()], 2)

    to_scorer = [slice(0, filters if rank == scorer else 0) for rank in range(world)]
    return (
        exchange_filters(rows, even_slices(filters, world), counts),
        exchange_filters(statistics, to_scorer, counts),
    )


def _slice_maps(layer: LayerMaps, rows: Tensor, filters: slice) -> LayerMaps:
    """The maps of some filters out of rows `(f, N, V)` that end with the statistics."""
    assert layer.zeros is not None
    pixels, statistics = rows.transpose(0, 1).tensor_split([-len(STATISTICS)], 2)
    maps = pixels.reshape(*pixels.shape[:2], *layer.batches[0].shape[2:])
    return LayerMaps([maps], layer.count, layer.size, layer.zeros[filters], statistics=[statistics])


def _without_points(part: FilterSlice) -> FilterSlice:
    """Drop points and labels: they are large, and only process 0 shows them."""
    layers = {
        name: replace(layer, points=layer.points[:, :0].clone(), labels=layer.labels[:, :0].clone())
        for name, layer in part.layers.items()
    }
    return replace(part, layers=layers)


def _join_samples(parts: Sequence[SampleStatistics], counts: Sequence[int], limit: int) -> SampleStatistics:
    """What is known of the samples of all processes."""
    known = [part for part, count in zip(parts, counts, strict=True) if count]
    return SampleStatistics.join(known).select(sample_order(counts, limit)) if known else SampleStatistics()


def _join_images(parts: Sequence[Tensor | None], counts: Sequence[int], limit: int) -> Tensor | None:
    """The images of all processes `(N, C, H, W)`; None unless all samples have one, of the same size."""
    known = [part for part, count in zip(parts, counts, strict=True) if part is not None and count]
    if [len(part) for part in known] != [count for count in counts if count] or len({p.shape[1:] for p in known}) != 1:
        return None
    return torch.cat(known)[sample_order(counts, limit)]
