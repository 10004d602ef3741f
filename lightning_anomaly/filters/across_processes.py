"""Analyze together in several processes: each has seen some of the samples, and analyzes some of the filters."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from lightning_anomaly._internal.processes import gather_results, rank_and_world, run_together
from lightning_anomaly.filters.analyze import KnownLayers, analyze_layers, make_anomaly_report
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.layer_report import LayerReport, join_layer_parts
from lightning_anomaly.filters.settings import AnalysisSettings
from lightning_anomaly.network.features import SampleCapture, SampleStatistics
from lightning_anomaly.network.layer_maps import LayerMaps, most_samples, usable_layers
from lightning_anomaly.scores.views import SampleView


def analyze_across_processes(
    maps: dict[str, LayerMaps],
    settings: AnalysisSettings,
    notes: Mapping[str, str],
    *,
    samples: SampleCapture,
    limit: int,
    known: KnownLayers | None = None,
) -> AnomalyReport:
    """Analyze the maps of at most `limit` samples of all processes, and remove them as they are sent.

    A collective call, also for a process without maps; the notes are the same everywhere, and so is the report.
    """
    rank, world = rank_and_world()

    def describe() -> tuple[dict[str, LayerMaps], SampleStatistics, dict[str, str]]:
        headers = {name: _process_header(layer) for name, layer in maps.items()}
        return headers, samples.collected(most_samples(maps)), samples.notes

    headers, statistics, sample_notes = zip(*gather_results(describe), strict=True)
    layers = {name: _join_process_headers([header[name] for header in headers], limit) for name in headers[0]}
    usable, n_samples, left_out = usable_layers(layers)
    counts = {name: [header[name].count for header in headers] for name in usable}

    def join_samples() -> SampleStatistics:
        seen = [most_samples(header) for header in headers]
        parts = [part for part, count in zip(statistics, seen, strict=True) if count]
        return SampleStatistics.join(parts).select(sample_order(seen, limit)) if parts else SampleStatistics()

    joined, received = run_together(join_samples), {}
    for name, layer in usable.items():
        # A process without maps sends none, of the same shape.
        received[name] = exchange_filters((maps[name] if maps[name].batches else layer).rows, counts[name])
        maps[name] = LayerMaps()

    def analyze() -> tuple[dict[str, LayerReport], dict[str, SampleView]]:
        parts = {}
        for name, layer in usable.items():
            rows = torch.cat(received.pop(name), 1)[:, sample_order(counts[name], limit)]
            pixels, extremes = rows.transpose(0, 1).tensor_split([-2], 2)  # see `LayerMaps.rows`
            values = pixels.reshape(*pixels.shape[:2], *layer.batches[0].shape[2:])
            assert layer.zeros is not None
            zeros = layer.zeros.tensor_split(world)[rank]
            parts[name] = replace(layer, batches=[values], zeros=zeros, extremes=[extremes])
        return analyze_layers(parts, settings, joined if rank == world - 1 else SampleStatistics(), known=known)

    parts, views = zip(*gather_results(analyze), strict=True)
    reports = {name: join_layer_parts([part[name] for part in parts if name in part]) for name in usable}
    notes = {**notes, **left_out, **ChainMap(*sample_notes)}
    return make_anomaly_report(reports, views[-1], n_samples, settings, notes, joined.images)


def _process_header(layer: LayerMaps) -> LayerMaps:
    """Copy a layer without its samples: the types and shapes of its maps and extremes stay."""
    batches, extremes = ([kept[0][:0].cpu().clone()] if kept else [] for kept in (layer.batches, layer.extremes))
    return replace(layer, batches=batches, zeros=None if layer.zeros is None else layer.zeros.cpu(), extremes=extremes)


def _join_process_headers(headers: Sequence[LayerMaps], limit: int) -> LayerMaps:
    """Join the headers of a layer in all processes; types and shapes must be the same."""
    seen = [header for header in headers if header.batches]
    problems = [header.problem for header in headers if header.problem is not None]
    if len({(header.size, header.batches[0].dtype, header.batches[0].shape) for header in seen}) > 1:
        problems.append("its maps differ between processes")
    if problems or not seen:
        return LayerMaps(problem=next(iter(problems), None))
    count = sum(header.count for header in seen)
    used = min(limit, count)
    # Sparsity is that of all samples seen, which may be a few more than those analyzed.
    zeros = torch.stack([header.zeros for header in seen if header.zeros is not None]).sum(0).double() * (used / count)
    return replace(seen[0], count=used, zeros=zeros)


def sample_order(counts: Sequence[int], limit: int) -> Tensor:
    """Return the order `(N,)` in which one process would have seen the samples of all, process 0's numbered first.

    `DistributedSampler` deals samples out one by one: sample i of process r is sample `i * world + r` of all.
    """
    dealt = [torch.arange(count, device="cpu") * len(counts) + rank for rank, count in enumerate(counts)]
    return torch.cat(dealt).argsort()[:limit]


def exchange_filters(make: Callable[[], Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Send each process its share of the rows `(F, n, V)` that `make` returns, and receive ours `(f, n, V)` from each.

    `F`, `V` and the type are the same everywhere, even if `n`, the number of samples in `counts`, is 0.
    """
    rank, world = rank_and_world()
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

    def prepare() -> tuple[Tensor, Tensor, list[int]]:
        rows = make()
        sizes = [len(part) for part in rows.tensor_split(world)]
        sent = functional.pad(rows, (0, 0, 0, max(counts) - rows.shape[1])).to(device)
        return sent, sent.new_empty(world * sizes[rank], *sent.shape[1:]), sizes

    sent, received, sizes = run_together(prepare)
    dist.all_to_all_single(received, sent, world * [sizes[rank]], sizes)
    return [part[:, :count] for part, count in zip(received.tensor_split(world), counts, strict=True)]
