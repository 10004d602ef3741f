"""What the steps of an analysis take on the device where the maps are, for `python -m recipes.benchmarks --device`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.maps import EXTREMES, LayerMaps
from lightning_anomaly.clustering.em import REG_COVAR, fit_mixtures
from lightning_anomaly.clustering.engines import Engine, load_engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.outliers.scores import layer_scores
from lightning_anomaly.settings import EngineName
from lightning_anomaly.shared_analysis import OutputSpec, analyze_shared
from lightning_anomaly.verdicts.isolation import isolated_samples
from recipes.benchmarks.speed import Row

__all__ = ["now", "profiled", "shared", "steps"]

Maps = Mapping[str, LayerMaps]
_SHOWN = 12  # operations of the profile


def steps(maps: Maps, name: EngineName, rounds: int) -> Row:
    """Seconds of the steps of an analysis, and of all of it."""
    settings = AnalysisSettings(engine=name)
    engine = load_engine(name)
    taken: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(1 + rounds):
            for step, seconds in _once(maps, settings, engine).items():
                taken.setdefault(step, []).append(seconds)
    return {"engine": f"{name} ({type(engine).__name__})"} | {step: median(own[1:]) for step, own in taken.items()}


def _once(maps: Maps, settings: AnalysisSettings, engine: Engine) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        begun = now()
        result = work()
        seconds[step] = seconds.get(step, 0.0) + now() - begun
        return result

    timed("to the engine's device", lambda: [m.maps.to(engine.device(m.batches[0].device)) for m in maps.values()])
    reductions = timed("pca", lambda: [reduce_maps(layer.maps, engine) for layer in maps.values()])
    points = torch.cat([reduction.points[reduction.live] for reduction in reductions])
    largest = settings.max_components
    centres = timed("k-means++", lambda: kmeans_plus_plus(points, settings.n_init, largest, settings.seed, engine))
    labels = []
    for k in range(2, largest + 1):
        start_labels = timed("k-means", partial(engine.kmeans, points, centres[:, :, :k]))[:, None]
        weights, means, precisions = timed(
            "starts", partial(cluster_parameters, points, start_labels, k, REG_COVAR, engine.cluster_moments)
        )
        labels.append(timed("em", partial(fit_mixtures, points, weights, means, precisions, engine)).labels[:, 0])
    timed("calinski-harabasz", lambda: engine.calinski_harabasz(points, torch.stack(labels, 1)))
    extremes = [
        torch.cat(layer.statistics).transpose(0, 1)[reduction.live, :, EXTREMES]
        for layer, reduction in zip(maps.values(), reductions, strict=True)
    ]
    timed("isolated", lambda: isolated_samples(points, settings.rare_fraction, torch.cat(extremes)))
    timed("scores", lambda: [layer_scores(torch.cat(layer.statistics), engine) for layer in maps.values()])
    timed("analysis", lambda: analyze_maps(maps, settings))
    return seconds


def profiled(maps: Maps) -> Row:
    """What the profiler sees of an analysis by plain torch: launches, waits, and the operations that take longest."""
    settings = replace(AnalysisSettings(), engine="torch")
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.no_grad(), profile(activities=activities) as seen:
        analyze_maps(maps, settings)
    events = seen.key_averages()
    counts = {event.key: event.count for event in events}

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    longest = sorted(events, key=microseconds, reverse=True)[:_SHOWN]
    return {
        "launches": sum(count for key, count in counts.items() if "LaunchKernel" in key),
        "waits": sum(count for key, count in counts.items() if key.endswith("Synchronize")),
        "longest": [(event.key, event.count, microseconds(event) / 1e6) for event in longest],
    }


def shared(maps: Maps) -> Row:
    """An analysis shared by one process, over NCCL on a GPU: seconds, and whether it finds what `analyze_maps` does."""
    device = next(iter(maps.values())).batches[0].device
    backend = "nccl" if device.type == "cuda" else "gloo"
    expected = analyze_maps(maps, AnalysisSettings())
    own = {
        name: LayerMaps([layer.maps], layer.count, layer.size, layer.zeros, None, [torch.cat(layer.statistics)])
        for name, layer in maps.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{Path(folder) / 'meet'}", rank=0, world_size=1)
        try:
            begun = now()
            found = analyze_shared(own, None, AnalysisSettings(), {}, limit=expected.n_samples, spec=OutputSpec())
            seconds = now() - begun
        finally:
            dist.destroy_process_group()
    same = all(
        layer.verdicts == found.report.layers[name].verdicts
        and torch.equal(layer.labels, found.report.layers[name].labels)
        for name, layer in expected.layers.items()
    )
    return {"backend": backend, "seconds": seconds, "same": same}


def now() -> float:
    """The time (seconds), when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
