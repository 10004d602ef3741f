"""What an analysis costs where a network is trained, `python -m recipes.benchmarks --device cuda --download`.

One call measures, on one device, everything that decides where the clustering should be done: a training of AlexNet and
of ResNet-50 without the callback, with it and the engine that `"auto"` chooses, and with it and plain torch on the
device; the steps of an analysis by both; what the profiler sees of plain torch; whether a training waits for the device
more often with the callback than without; and an analysis shared over NCCL by one process.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.callbacks._together import Wanted, analyse_together
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.clustering.em import REG_COVAR, fit_mixtures
from lightning_anomaly.clustering.engines import Engine, choose_engine
from lightning_anomaly.clustering.kmeans import kmeans, kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.isolation import isolated_samples
from lightning_anomaly.scores import layer_scores
from recipes.benchmarks.speed import Row
from recipes.common.module import Classifier
from recipes.common.options import SILENT

__all__ = ["Subject", "device_tables", "measure_device", "noise"]

Maps = Mapping[str, LayerMaps]
_ENGINES = ("auto", "torch")
_WARM = 3  # batches of each epoch before it is timed
_SHOWN = 12  # operations of the profile


@dataclass(frozen=True)
class Subject:
    """A network and what it is trained on.

    Attributes:
        name: What it is called.
        make: Builds it.
        train: Its training images.
        val: The probe.
        batches: Training batches that are timed in each epoch.
        rounds: Epochs that are timed, after one to warm up, and analyses.
    """

    name: str
    make: Callable[[], nn.Module]
    train: DataLoader[Any]
    val: DataLoader[Any]
    batches: int = 60
    rounds: int = 3

    @property
    def probe(self) -> int:
        """Number of images of the probe."""
        return len(self.val.dataset)  # type: ignore[arg-type]

    @property
    def shortened(self) -> dict[str, int]:
        """The Trainer's argument for an epoch of some batches."""
        return {"limit_train_batches": _WARM + self.batches}


class _Noise(Dataset[Any]):
    """So many images of so many pixels a side, of random numbers, some of which come again."""

    def __init__(self, count: int, side: int) -> None:
        self._count = count
        self._pixels = torch.randn(min(count, 64), 3, side, side, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # Shifted by its number, so that no two images of a probe are the same.
        return self._pixels[index % len(self._pixels)].roll(index, 2), index % 10


def noise(count: int, side: int, batch_size: int) -> DataLoader[Any]:
    """Batches of random images `(n, 3, side, side)`."""
    return DataLoader(_Noise(count, side), batch_size)


class _Clock(pl.Callback):
    """Seconds of a training batch and of a validation in every epoch; the first callback, so that it sees the others.

    Attributes:
        batches: Median seconds of a batch, loading included, after some to warm up.
        validations: Seconds of a validation.
    """

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.validations: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts at the first batch that counts."""
        if batch_idx == _WARM:
            self._begun = _now()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Ends the training part of the epoch."""
        now = _now()
        self.batches.append((now - self._begun) / max(1, trainer.num_training_batches - _WARM))
        self._begun = now

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the validation."""
        self.validations.append(_now() - self._begun)


class _Waits:
    """How often this process waited for the GPU, as torch sees it.

    Attributes:
        count: How often so far.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts inside."""
        if not torch.cuda.is_available():
            yield
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.count += sum("synchronizing" in str(warning.message) for warning in caught)


def measure_device(device: torch.device, subjects: Sequence[Subject], found: Callable[[str, list[Row]], None]) -> None:
    """Measure everything on a device, and give it to `found` part by part."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for subject in subjects:
        row = {"network": subject.name, "device": name}
        found("training", [{**row, **own} for own in _trainings(device, subject)])
        maps = _maps(device, subject)
        found("steps", [{**row, **_steps(maps, engine, subject.rounds)} for engine in _ENGINES])
        found("profile", [{**row, **_profile(maps)}])
        found("waits", [{**row, **_waits(device, subject)}])
        found("shared", [{**row, **_shared(maps)}])


def device_tables(numbers: Mapping[str, Any]) -> list[str]:
    """The numbers as lines of Markdown, those parts that were measured."""
    lines: list[str] = []
    rows = numbers.get("training", [])
    if rows:
        columns = ("epoch_seconds", "validation_seconds", "added_seconds", "analysis_seconds")
        heading = [
            "network",
            "device",
            "callback's engine",
            *(column.replace("_seconds", " (s)") for column in columns),
        ]
        lines += ["", f"| {' | '.join([*heading, 'added, of an epoch'])} |", "|" + " --- |" * 8]
    for row in rows:
        cells = [row["network"], row["device"], row["engine"], *(f"{row[column]:.3g}" for column in columns)]
        lines.append(f"| {' | '.join(cells)} | {100 * row['share']:.2f}% |")
    rows = numbers.get("steps", [])
    if rows:
        steps = [key for key in rows[0] if isinstance(rows[0][key], float)]
        lines += ["", f"| {' | '.join(['network', 'engine', *(f'{step} (s)' for step in steps)])} |"]
        lines += ["|" + " --- |" * (2 + len(steps))]
    for row in rows:
        cells = [row["network"], row["engine"], *(f"{row[step]:.3g}" for step in steps)]
        lines.append(f"| {' | '.join(cells)} |")
    for row in numbers.get("profile", []):
        lines += ["", f"{row['network']}, plain torch: {row['launches']} launches, {row['waits']} waits; longest:"]
        lines += [f"- {name}: {count} times, {seconds:.3g} s" for name, count, seconds in row["longest"]]
    for row in numbers.get("waits", []):
        lines.append(f"\n{row['network']}: the batches of an epoch wait for the device {row['with']} times with the "
                     f"callback, {row['without']} without.")  # fmt: skip
    for row in numbers.get("shared", []):
        lines.append(f"\n{row['network']}: one process over {row['backend']} takes {row['seconds']:.3g} s and finds "
                     f"{'the same' if row['same'] else 'SOMETHING ELSE'}.")  # fmt: skip
    return lines


def _trainer(device: torch.device, callbacks: list[Any], **options: Any) -> pl.Trainer:
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    plain = {"precision": "bf16-mixed", "num_sanity_val_steps": 0, **SILENT}
    return pl.Trainer(accelerator=accelerator, devices=1, callbacks=callbacks, **{**plain, **options})


def _trainings(device: torch.device, subject: Subject) -> Iterator[Row]:
    """An epoch, scaled from some batches, and the validation of the probe in it: without the callback, and with it."""
    without = 0.0
    for engine in (None, *_ENGINES):
        clock = _Clock()
        watchers = [_watcher(subject, engine)] if engine else []
        trainer = _trainer(device, [clock, *watchers], max_epochs=1 + subject.rounds, **subject.shortened)
        torch.manual_seed(0)
        trainer.fit(Classifier(subject.make()), subject.train, subject.val)
        epoch, validation = median(clock.batches[1:]) * len(subject.train), median(clock.validations[1:])
        without = without if engine else validation
        yield {
            "engine": engine or "without the callback",
            "batch_size": subject.train.batch_size,
            "probe": subject.probe,
            "epoch_seconds": epoch,
            "validation_seconds": validation,
            "added_seconds": validation - without,
            "share": (validation - without) / epoch,
            "analysis_seconds": median([w["metrics"]["seconds"] for own in watchers for w in own.history] or [0.0]),
        }


def _watcher(subject: Subject, engine: str) -> AnomalyFilterCallback:
    settings = replace(AnalysisSettings(), engine=engine)  # type: ignore[arg-type]
    return AnomalyFilterCallback(probe_size=subject.probe, settings=settings)


def _maps(device: torch.device, subject: Subject) -> Maps:
    """The maps of the network with random weights, on the device."""
    taken: dict[str, LayerMaps] = {}

    class Keeps(pl.Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            taken.update(watcher._watch._capture.maps)  # type: ignore[union-attr]

    watcher = _watcher(subject, "auto")
    torch.manual_seed(0)
    _trainer(device, [Keeps(), watcher]).validate(Classifier(subject.make()), subject.val, verbose=False)
    return taken


def _steps(maps: Maps, name: str, rounds: int) -> Row:
    """Seconds of the steps of an analysis, and of all of it."""
    settings = replace(AnalysisSettings(), engine=name)  # type: ignore[arg-type]
    device = next(iter(maps.values())).batches[0].device
    engine, _ = choose_engine(name, device)
    taken: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(1 + rounds):
            for step, seconds in _once(maps, settings, engine).items():
                taken.setdefault(step, []).append(seconds)
    return {"engine": f"{name} ({type(engine).__name__})"} | {step: median(own[1:]) for step, own in taken.items()}


def _once(maps: Maps, settings: AnalysisSettings, engine: Engine) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        begun = _now()
        result = work()
        seconds[step] = seconds.get(step, 0.0) + _now() - begun
        return result

    timed("to the engine's device", lambda: [m.maps.to(engine.device(m.batches[0].device)) for m in maps.values()])
    reductions = timed("pca", lambda: [reduce_maps(layer.maps, engine) for layer in maps.values()])
    points = torch.cat([reduction.points[reduction.live] for reduction in reductions])
    largest = settings.max_components
    centres = timed("k-means++", lambda: kmeans_plus_plus(points, settings.n_init, largest, settings.seed, engine))
    labels = []
    for k in range(2, largest + 1):
        start_labels = timed("k-means", partial(kmeans, points, centres[:, :, :k], engine))[:, None]
        weights, means, precisions = timed(
            "starts", partial(cluster_parameters, points, start_labels, k, REG_COVAR, engine.cluster_moments)
        )
        labels.append(timed("em", partial(fit_mixtures, points, weights, means, precisions, engine)).labels[:, 0])
    timed("calinski-harabasz", lambda: engine.calinski_harabasz(points, torch.stack(labels, 1)))
    timed("isolated", lambda: isolated_samples(points, settings.rare_fraction))
    timed("scores", lambda: [layer_scores(torch.cat(layer.statistics), engine) for layer in maps.values()])
    timed("analysis", lambda: analyze_maps(maps, settings))
    return seconds


def _profile(maps: Maps) -> Row:
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


def _waits(device: torch.device, subject: Subject) -> Row:
    """How often the batches of an epoch wait for the GPU, without the callback and with it; it should not matter."""

    class Counts(pl.Callback):
        def __init__(self) -> None:
            self.waits = _Waits()

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self._inside = self.waits.counting()
            self._inside.__enter__()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self._inside.__exit__(None, None, None)

    counted = []
    for watchers in ([], [_watcher(subject, "auto")]):
        counts = Counts()
        trainer = _trainer(device, [counts, *watchers], max_epochs=1, **subject.shortened)
        torch.manual_seed(0)
        trainer.fit(Classifier(subject.make()), subject.train, subject.val)
        counted.append(counts.waits.count)
    return {"without": counted[0], "with": counted[1]}


def _shared(maps: Maps) -> Row:
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
            begun = _now()
            found = analyse_together(own, None, AnalysisSettings(), {}, limit=expected.n_samples, wanted=Wanted())
            seconds = _now() - begun
        finally:
            dist.destroy_process_group()
    same = all(
        layer.verdicts == found.report.layers[name].verdicts
        and torch.equal(layer.labels, found.report.layers[name].labels)
        for name, layer in expected.layers.items()
    )
    return {"backend": backend, "seconds": seconds, "same": same}


def _now() -> float:
    """The time (seconds), when the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
