"""The parts of the benchmarks; each function yields the rows of a table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback, MemorizationCallback, analyze
from lightning_anomaly.filters.settings import EngineName
from recipes.common.module import Classifier
from recipes.common.options import SILENT
from recipes.development.benchmarks.searches import outliers, photographs, pieces, single, workers
from recipes.development.benchmarks.timing import Row, in_fresh_processes, in_turns, timed
from recipes.development.benchmarks.work import WORK, network_of, noise, prepare

_ENGINES: tuple[EngineName, ...] = ("numba", "sklearn")
_EPOCHS = 5  # of a fit for `overhead`


def speed(device: str, quick: bool) -> Iterator[Row]:
    """An analysis by compiled loops and by a loop over scikit-learn's estimators."""
    for name, side in (("lenet5", 32),) if quick else (("alexnet", 32), ("simple_cnn", 32), ("resnet18", 64)):
        network, images = network_of(name).to(device), noise(64 if quick else 512, side).to(device)
        starts = 1 if quick else AnalysisSettings().n_init
        settings = {str(engine): AnalysisSettings(engine=engine, n_init=starts) for engine in _ENGINES}
        sides = {engine: partial(analyze, network, images, settings=value) for engine, value in settings.items()}
        times = in_turns(sides, 1 if quick else 3)
        for engine, row in times.iterrows():
            faster = times.seconds["sklearn"] / row.seconds
            yield {"network": name, "engine": engine, **row, "times as fast as scikit-learn": faster}


def overhead(device: str, quick: bool) -> Iterator[Row]:
    """What each callback adds to a training epoch of 50,000 images of 32x32, scaled from 60 batches of 128.

    The time of a validation of 512 images (of 512 of each kind for the comparison), minus that without the callback,
    in fits of five epochs of one batch.
    """
    batches, size = (4, 128) if quick else (60, 512)
    labels = torch.randint(10, (1024,), generator=torch.Generator().manual_seed(0))
    images = noise(len(labels), 32)
    loader = DataLoader(TensorDataset(images, labels), 128)
    callbacks: dict[str, Callable[[], list[pl.Callback]]] = {
        "": lambda: [],
        "AnomalyFilterCallback": lambda: [AnomalyFilterCallback(probe_size=size, log_figures=False)],
        "MemorizationCallback": lambda: [MemorizationCallback(images[:size], images[-size:])],
    }
    options: dict[str, Any] = {**SILENT, "accelerator": device, "devices": 1}
    short = {**options, "max_epochs": _EPOCHS, "limit_train_batches": 1, "num_sanity_val_steps": 0}
    for name in ("lenet5",) if quick else ("alexnet", "simple_cnn", "lenet5"):
        module = Classifier(network_of(name).train())
        epochs = -(-batches // len(loader))
        epoch = pl.Trainer(**options, max_epochs=epochs, limit_val_batches=0)
        seconds = timed(partial(epoch.fit, module, loader, loader))["seconds"] / (epochs * len(loader)) * 50_000 / 128

        def fit(side: str, module: pl.LightningModule = module) -> None:
            pl.Trainer(**short, callbacks=callbacks[side]()).fit(module, loader, loader)

        times = in_turns({side: partial(fit, side) for side in callbacks}, 1 if quick else 3).seconds / _EPOCHS
        for side in list(callbacks)[1:]:
            added = times[side] - times[""]
            row = {"network": name, "callback": side, "epoch (s)": seconds, "added (s)": added}
            yield {**row, "share": added / seconds}
        yield {"network": name, "callback": "its figures", "epoch (s)": seconds, "added (s)": _figures(module, options)}


def _figures(module: pl.LightningModule, options: dict[str, Any]) -> float:
    """Seconds that the figures of one analysis take: the time of a fit of one batch with them minus that without."""
    loader = DataLoader(TensorDataset(noise(128, 32), torch.arange(128) % 10), 128)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[bool, float] = {}
        for figures in (True, False):
            watcher = AnomalyFilterCallback(probe_size=128, log_figures=figures)
            trainer = pl.Trainer(**options | {"logger": TensorBoardLogger(folder)}, callbacks=[watcher], max_epochs=1,
                                 num_sanity_val_steps=0, log_every_n_steps=1)  # fmt: skip
            sides[figures] = timed(partial(trainer.fit, module, loader, loader))["seconds"]
    return sides[True] - sides[False]


def large(device: str, quick: bool) -> Iterator[Row]:
    """Time and memory of an analysis of large networks beside those of a forward pass, on the CPU."""
    cases = [("resnet18", 512), ("resnet50", 512), ("convnext_base", 512), ("resnet50", 2048), ("convnext_base", 2048)]
    for name, images in [("lenet5", 64)] if quick else cases:
        arguments = (name, images, 32 if quick else 224)
        sides = {what: partial(prepare, what, *arguments) for what in ("forward", "analyze")}
        found = in_fresh_processes(sides, 0 if quick else 1)
        for side, row in found.iterrows():
            yield {"network": name, "images": images, "side": side, **row}


class _Noise(Dataset[tuple[Tensor, int]]):
    """Images that are created when they are read, like those of a folder."""

    def __init__(self, images: int, side: int) -> None:
        self.images, self.side = images, side

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(10_000 * index + self.images)
        return torch.randn(3, self.side, self.side, generator=generator), index % 10


_WATCHERS: dict[str, Callable[[], list[pl.Callback]]] = {
    "none": lambda: [],
    "AnomalyFilterCallback": lambda: [AnomalyFilterCallback(log_figures=False)],
    "MemorizationCallback": lambda: [MemorizationCallback()],
    "MemorizationCallback, all images kept": lambda: [MemorizationCallback(max_memory_mb=10_000)],
}


def _prepare_fit(name: str, network: str, images: int, side: int) -> Callable[[], Any]:
    """Load compiled code with a small network, then return a fit of a few batches with two validations."""
    WORK["analyze"](network_of("lenet5"), noise(200, 32))
    module = Classifier(network_of(network).train())
    train, val = (DataLoader(_Noise(count, side), 16) for count in (images, images + 1))
    trainer = pl.Trainer(**SILENT, accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=2,
                         limit_val_batches=images // 32, callbacks=_WATCHERS[name]())  # fmt: skip
    return partial(trainer.fit, module, train, val)


def memory(device: str, quick: bool) -> Iterator[Row]:
    """The peak memory of a fit on images of 224x224 with each callback, on the CPU."""
    arguments = ("lenet5", 1024, 32) if quick else ("mobilenet_v3_small", 1024, 224)
    names = list(_WATCHERS)[: 2 if quick else None]
    found = in_fresh_processes({name: partial(_prepare_fit, name, *arguments) for name in names}, 0 if quick else 1)
    for name, row in found.iterrows():
        yield {"network": arguments[0], "side": arguments[2], "callback": name, **row}


def processes(device: str, quick: bool) -> Iterator[Row]:
    """An analysis by one process and by several, each with one thread, on the CPU."""
    name, side, images = ("lenet5", 32, 64) if quick else ("resnet18", 64, 512)
    for count in (1, 2) if quick else (1, 2, 4):
        loader = DataLoader(TensorDataset(noise(images, side), torch.arange(images) % 10), 16)
        watcher = AnomalyFilterCallback(probe_size=images, log_figures=False)
        strategy = "ddp_spawn" if count > 1 else "auto"
        trainer = pl.Trainer(**SILENT, accelerator="cpu", devices=count, callbacks=[watcher], strategy=strategy)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        trainer.validate(Classifier(network_of(name)), loader, verbose=False)
        torch.set_num_threads(threads)
        seconds = trainer.callback_metrics["anomaly_filters/seconds"].item()
        yield {"network": name, "images": images, "processes": count, "seconds": seconds}


_SEARCHES = outliers, single, photographs, pieces, workers
PARTS = {part.__name__: part for part in (speed, overhead, large, memory, *_SEARCHES, processes)}
