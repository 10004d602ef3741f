"""What an analysis costs where a network is trained, `python -m recipes.benchmarks --device cuda --download`.

One call measures, on one device, everything that decides where the clustering should be done: a training of AlexNet and
of ResNet-50 without the callback, with it and the engine that `"auto"` chooses, and with it and plain torch on the
device; the steps of an analysis by both; what the profiler sees of plain torch; whether a training waits for the device
more often with the callback than without; and an analysis shared over NCCL by one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.settings import EngineName
from recipes.benchmarks.speed import Row
from recipes.benchmarks.steps import now, profiled, shared, steps
from recipes.common.module import Classifier
from recipes.common.options import SILENT

__all__ = ["Subject", "device_tables", "measure_device", "noise"]

Maps = Mapping[str, LayerMaps]
_ENGINES: tuple[EngineName, ...] = ("auto", "torch")
_WARM = 3  # batches of each epoch before it is timed


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
        dataset: Any = self.val.dataset
        return len(dataset)

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
            self._begun = now()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Ends the training part of the epoch."""
        ended = now()
        self.batches.append((ended - self._begun) / max(1, trainer.num_training_batches - _WARM))
        self._begun = ended

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the validation."""
        self.validations.append(now() - self._begun)


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
        found("steps", [{**row, **steps(maps, engine, subject.rounds)} for engine in _ENGINES])
        found("profile", [{**row, **profiled(maps)}])
        found("waits", [{**row, **_waits(device, subject)}])
        found("shared", [{**row, **shared(maps)}])


def device_tables(numbers: Mapping[str, Any]) -> list[str]:
    """The numbers as lines of Markdown, those parts that were measured."""
    lines: list[str] = []
    rows = numbers.get("training", [])
    if rows:
        columns = ["epoch_seconds", "validation_seconds", "added_seconds", "analysis_seconds"]
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
        columns = [key for key in rows[0] if isinstance(rows[0][key], float)]
        lines += ["", f"| {' | '.join(['network', 'engine', *(f'{step} (s)' for step in columns)])} |"]
        lines += ["|" + " --- |" * (2 + len(columns))]
    for row in rows:
        cells = [row["network"], row["engine"], *(f"{row[step]:.3g}" for step in columns)]
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


def _watcher(subject: Subject, engine: EngineName) -> AnomalyFilterCallback:
    return AnomalyFilterCallback(probe_size=subject.probe, settings=AnalysisSettings(engine=engine))


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
