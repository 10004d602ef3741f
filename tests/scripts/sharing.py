"""Analyses of the same maps by one process and by several processes that share the samples, see `forked.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from forked import LIMIT, Outcome
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.filters import across_processes
from lightning_anomaly.filters.across_processes import analyze_across_processes
from lightning_anomaly.filters.analyze import analyze_maps
from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.network.layer_maps import LayerMaps, MapCapture

SETTINGS = AnalysisSettings(n_init=3, max_components=3, rare_fraction=0.05, max_map_side=3)
NOTES = {"from": "the caller"}


def outputs(samples: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Make the outputs of layers `(N, F, ...)`, with few filters, dead ones, and ones that are not finite."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (7, 5, 5), "flat": (4,), "narrow": (2, 3, 3), "one": (1, 2, 2), "late": (5, 2, 3)}
    maps = {name: torch.randn(samples, *shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    for values in maps.values():
        values[3] *= 9  # an outlier of every filter
    maps["wide"][:, 2] = 0
    maps["late"][5, 1] = torch.nan
    maps["late"][9, 4] = torch.inf
    return maps


def captured(outputs: dict[str, Tensor]) -> dict[str, LayerMaps]:
    layers = {name: nn.Identity() for name in outputs}
    capture = MapCapture(dict(layers), rectify=False, max_map_side=SETTINGS.max_map_side)
    for parts in zip(*(torch.split(values, 4) for values in outputs.values()), strict=True):
        with capture:
            for layer, part in zip(layers.values(), parts, strict=True):
                layer(part)
    return capture.maps


def described(features: Tensor | None = None, images: Tensor | None = None) -> Any:
    """Stand in for a `SampleCapture` that took these features and small images."""
    return SimpleNamespace(collected=lambda _: SampleStatistics(features=features, images=images), notes={})


def dealt(counts: Sequence[int], rank: int) -> list[int]:
    """The samples of a process: they are dealt one by one to the processes that have not got all of theirs."""
    order = [receiver for turn in range(max(counts)) for receiver, count in enumerate(counts) if turn < count]
    return [sample for sample, receiver in enumerate(order) if receiver == rank]


def begin(rank: int, world: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))


def even(rank: int, world: int) -> Outcome:
    """Share three more samples than are analyzed."""
    return compared([32, 32], torch.float32, 61, rank, world)


def uneven(rank: int, world: int) -> Outcome:
    """Share among more processes than some layers have filters; one process has no samples."""
    return compared([0, 40, 21], torch.float64, 100, rank, world)


def compared(counts: Sequence[int], dtype: torch.dtype, limit: int, rank: int, world: int) -> Outcome:
    begin(rank, world)
    everything, samples = outputs(sum(counts), dtype), dealt(counts, rank)
    images = torch.rand(sum(counts), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    maps = captured({name: values[samples] for name, values in everything.items()})
    features = everything["wide"].flatten(1)
    report = analyze_across_processes(
        maps, SETTINGS, NOTES, samples=described(features[samples], images[samples]), limit=limit
    )

    kept = min(limit, sum(counts))
    whole = captured({name: values[:kept] for name, values in everything.items()})
    expected = analyze_maps(whole, SETTINGS, NOTES, samples=described(features[:kept], images[:kept]))
    counted = {name: layer.sparsity for name, layer in captured(everything).items()}  # of all samples
    different = [
        (name, field)
        for name, layer in expected.layers.items()
        for field, value in {**vars(layer), "sparsity": counted[name]}.items()
        if not same(getattr(report.layers[name], field), value)
    ]
    return {
        "different": different,
        "layers": list(report.layers) == list(expected.layers),
        "notes": (report.notes, expected.notes),
        "n_samples": (report.n_samples, kept),
        "scores": same(report.content_scores, expected.content_scores) and bool((report.content_scores > 0).any()),
        "left": sum(len(layer.batches) + len(layer.extremes) for layer in maps.values()),
        "images": report.images is not None and torch.equal(report.images, expected.images),
    }


def same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        return torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def problem(rank: int, world: int) -> Outcome:
    """In process 1, one layer has no maps, another has maps of another size, and samples have no scores."""
    begin(rank, world)
    values = {name: values[rank::world] for name, values in outputs(62).items()}
    if rank == 1:
        values["late"] = values["late"][:, :, :1]
    maps, samples = captured(values), described()
    if rank == 1:
        maps["wide"].problem = "it is out of order"
        samples.notes["views"] = "Samples are not scored."
    report = analyze_across_processes(maps, SETTINGS, NOTES, samples=samples, limit=62)
    return {"notes": report.notes, "layers": list(report.layers), "images": report.images is None}


def fails(rank: int, world: int) -> Outcome:
    """Process 1 fails before it sends its maps, while it sends them, and while it analyzes its filters."""
    begin(rank, world)
    header, exchange = across_processes._process_header, across_processes.exchange_filters
    broken: dict[str, dict[str, Any]] = {
        "before": {"_process_header": _break},
        "sending": {"_process_header": header, "exchange_filters": lambda make, *args: exchange(_break, *args)},
        "analyzing": {"exchange_filters": exchange, "analyze_layers": _break},
    }
    errors = {}
    for stage, functions in broken.items():
        maps = captured({name: values[rank::world] for name, values in outputs(20).items()})
        if rank == 1:
            vars(across_processes).update(functions)
        try:
            analyze_across_processes(maps, SETTINGS, {}, samples=described(), limit=20)
        except Exception as error:
            errors[stage] = repr(error)
    return errors


def _break(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError("full")
