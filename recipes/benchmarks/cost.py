"""What an analysis costs as it grows, in a training, and in memory, for `python -m recipes.benchmarks`."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.models import get_model

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback, TwoSampleCallback, two_sample_test
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.probe import run
from lightning_anomaly.clustering.choice import cluster_filters
from lightning_anomaly.clustering.em import REG_COVAR, fit_mixtures
from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from recipes.benchmarks.speed import Row, timed
from recipes.common.data import ImageData, Loader, make_loaders
from recipes.common.maps import capture
from recipes.common.module import Classifier
from recipes.common.options import SILENT

__all__ = ["comparison_overhead", "exponent", "growth", "large", "overhead", "resident_peak"]

_WARM = 3  # batches before the epoch is timed
_AT_ONCE = 8  # images in a forward pass while memory is measured: activations must not hide what the analysis takes


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms: 1 where the cost grows in proportion."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(
    points: Tensor, filters: Sequence[int], samples: Sequence[int], components: Sequence[int], rounds: int
) -> list[Row]:
    """Time the clustering of real points `(F, N, 2)` for more filters, samples and components.

    Filters are drawn again and again where there are not enough. The first two run `cluster_filters` with default
    settings, on 512 samples or 512 filters; components run k-means and mixtures of one number of them on both.
    """
    settings = AnalysisSettings()
    engine = load_engine(settings.engine)
    drawn = torch.randint(len(points), (max(filters),), generator=torch.Generator().manual_seed(0))
    probe, some = min(512, points.shape[1]), drawn[:512]
    many = points[drawn, :probe]

    def one_number(k: int) -> None:
        own = many[:512]
        centres = kmeans_plus_plus(own, settings.n_init, k, settings.seed, engine)
        start = cluster_parameters(own, engine.kmeans(own, centres)[:, None], k, REG_COVAR, engine.cluster_moments)
        fit_mixtures(own, *start, engine)

    work: dict[str, dict[int, Callable[[], Any]]] = {
        "filters": {n: partial(cluster_filters, many[:n], settings, engine) for n in filters},
        "samples": {n: partial(cluster_filters, points[some, :n], settings, engine) for n in samples},
        "components": {k: partial(one_number, k) for k in components},
    }
    table: list[Row] = []
    for name, functions in work.items():
        next(iter(functions.values()))()
        seconds = [median(timed(function) for _ in range(rounds)) for function in functions.values()]
        table.append(
            {"of": name, "sizes": list(functions), "seconds": seconds, "exponent": exponent(list(functions), seconds)}
        )
    return table


class _Stopwatch(pl.Callback):
    """Seconds a training batch, loading included, after some to warm up."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0
        self.batches = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts at the first batch that counts."""
        if batch_idx == _WARM:
            self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops, until the next batch."""
        if batch_idx >= _WARM:
            self.batches, self.ended = self.batches + 1, time.perf_counter()


def overhead(name: str, network: nn.Module, data: ImageData, batch_size: int, batches: int, rounds: int) -> Row:
    """What the callback adds to a training epoch, as a share of it, and where that goes.

    The epoch is timed on some batches and scaled to the whole training set. What the callback adds is the time of a
    validation of the probe with it less that without, in turn. Figures, drawn at the 1st, 2nd, 4th, ... analysis only,
    are timed apart.
    """
    train, val = make_loaders(data, batch_size)
    module = Classifier(network)
    epoch = _epoch(module, train, val, batches)
    size = len(data.val_images)
    watcher = AnomalyFilterCallback(probe_size=size)
    images = torch.cat([batch[0] for batch in val]).to(module.device)
    maps = capture(network, images, watcher.settings)
    engine = load_engine(watcher.settings.engine)
    points = [(reduction.points[reduction.live]) for reduction in (reduce_maps(m.maps, engine) for m in maps.values())]
    apart: dict[str, Callable[[], Any]] = {
        "hooked": lambda: capture(network, images, watcher.settings),
        "unhooked": lambda: run(network, images, MapCapture({})),
        "pca": lambda: [reduce_maps(layer.maps, engine) for layer in maps.values()],
        "clustering": lambda: [cluster_filters(own, watcher.settings, engine) for own in points],
    }
    seconds = _added(module, val, watcher, apart, rounds)
    taken = seconds["hooked"] - seconds["unhooked"]
    return {
        "network": name,
        **epoch,
        "probe": size,
        "added_seconds": seconds["added"],
        "share": seconds["added"] / epoch["epoch_seconds"],
        "capture_seconds": taken,
        "pca_seconds": seconds["pca"],
        "clustering_seconds": seconds["clustering"],
        "rest_seconds": seconds["added"] - taken - seconds["pca"] - seconds["clustering"],
        "figures_seconds": _figures(module, train, val),
    }


def _epoch(module: pl.LightningModule, train: Loader, val: Loader, batches: int) -> Row:
    """An epoch of so many images in such batches, on how many of these it was timed, and its seconds."""
    stopwatch = _Stopwatch()
    pl.Trainer(
        max_epochs=1, limit_train_batches=_WARM + batches, limit_val_batches=0, callbacks=[stopwatch], **SILENT
    ).fit(module, train, val)
    images: Any = train.dataset
    return {
        "train_images": len(images),
        "batch_size": train.batch_size,
        "timed_batches": stopwatch.batches,
        "epoch_seconds": (stopwatch.ended - stopwatch.begun) / stopwatch.batches * len(train),
    }


def _added(
    module: pl.LightningModule, val: Loader, callback: pl.Callback, apart: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Median seconds that a callback adds to a validation, as `added`, and those of what is timed `apart`, in turn."""
    with_it, without = pl.Trainer(callbacks=[callback], **SILENT), pl.Trainer(**SILENT)
    work: dict[str, Callable[[], Any]] = {
        "with": lambda: with_it.validate(module, val, verbose=False),
        "without": lambda: without.validate(module, val, verbose=False),
        **apart,
    }
    for function in work.values():
        function()
    times: dict[str, list[float]] = {key: [] for key in work}
    for _ in range(rounds):
        for key, function in work.items():
            times[key].append(timed(function))
    seconds = {key: median(own) for key, own in times.items()}
    return seconds | {"added": seconds["with"] - seconds["without"]}


def comparison_overhead(
    name: str, network: nn.Module, data: ImageData, batch_size: int, batches: int, rounds: int
) -> Row:
    """What a `TwoSampleCallback` adds to a training epoch, in the way of `overhead`.

    It compares all validation images with as many training images. Of what it adds, a forward pass of all of them is
    timed apart, and a whole comparison without a Trainer. Where every fifth epoch has a validation, it adds a fifth.
    """
    train, val = make_loaders(data, batch_size)
    module = Classifier(network)
    epoch = _epoch(module, train, val, batches)
    val_images = torch.cat([batch[0] for batch in val])
    train_images = torch.stack([train.dataset[index][0] for index in range(len(val_images))])
    compared = TwoSampleCallback(train_images, val_images)
    images = torch.cat([train_images, val_images])
    apart: dict[str, Callable[[], Any]] = {
        "comparison": lambda: two_sample_test(network, train_images, val_images),
        "forward": lambda: run(network, images, MapCapture({})),
    }
    seconds = _added(module, val, compared, apart, rounds)
    return {
        "network": name,
        **epoch,
        "compared": len(val_images),
        "added_seconds": seconds["added"],
        "share": seconds["added"] / epoch["epoch_seconds"],
        "comparison_seconds": seconds["comparison"],
        "forward_seconds": seconds["forward"],
    }


def _figures(module: pl.LightningModule, train: Any, val: Any) -> float:
    """Seconds that the figures of one analysis take: a fit of one batch with them less one without."""
    seconds = []
    for log_figures in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            watcher = AnomalyFilterCallback(probe_size=len(val.dataset), log_figures=log_figures)
            options = {**SILENT, "logger": TensorBoardLogger(folder), "limit_train_batches": 1, "max_epochs": 1}
            trainer = pl.Trainer(callbacks=[watcher], num_sanity_val_steps=0, log_every_n_steps=1, **options)
            seconds.append(timed(partial(trainer.fit, module, train, val)))
    return seconds[0] - seconds[1]


def large(network: str, side: int, images: int) -> Row:
    """What the analysis of a network of torchvision's takes, in time and in memory, with random weights and on noise.

    Two fresh processes run the network; one also takes the maps and analyses them. The analysis alone is timed, after a
    small one that loads what is compiled. The peak is that of the resident set, in the kernel's own books, numba's code
    included; a forward pass in batches of 8 has the same one for any number of images.

    Raises:
        FileNotFoundError: Where the kernel is not Linux.
    """
    found: list[Row] = []
    for watched in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(_in_fresh_process, network, side, images, watched).result())
    alone, both = found
    peak = both.pop("peak_mib")
    return {
        "network": network,
        "side": side,
        "images": images,
        "alone_mib": alone["peak_mib"],
        "analysed_mib": peak,
        "extra_mib": peak - alone["peak_mib"],
        **both,
    }


def _in_fresh_process(network: str, side: int, images: int, watched: bool) -> Row:
    torch.manual_seed(0)
    model = get_model(network)
    taken = MapCapture(select_layers(model) if watched else {})
    with evaluating(model), torch.no_grad():
        for _ in range(0, images if watched else 2 * _AT_ONCE, _AT_ONCE):
            with taken:
                model(torch.randn(_AT_ONCE, 3, side, side))
    if not watched:
        return {"peak_mib": resident_peak()}
    analyze_maps(dict(list(taken.maps.items())[:1]), AnalysisSettings())
    begun = time.perf_counter(), time.process_time()
    report = analyze_maps(taken.maps, AnalysisSettings())
    seconds, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return {
        "peak_mib": resident_peak(),
        "maps_mib": sum(batch.nbytes for layer in taken.maps.values() for batch in layer.batches) / 2**20,
        "filters": sum(len(layer.verdicts) for layer in report.layers.values()),
        "seconds": seconds,
        "cpu_seconds": processor,
        "said": str(report),
    }


def resident_peak() -> float:
    """The most memory that this process has had so far (MiB), in the books of Linux."""
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
