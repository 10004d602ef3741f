"""What is timed: each function gives rows of a table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import get_model

from lightning_anomaly import (
    AnalysisSettings,
    AnomalyFilterCallback,
    OutlierDetector,
    TwoSampleCallback,
    analyze,
    find_outliers,
)
from lightning_anomaly.images import FolderImages
from lightning_anomaly.settings import EngineName
from recipes import predict
from recipes.benchmarks.timing import Row, in_fresh_processes, in_turns, timed
from recipes.common.module import Classifier
from recipes.common.networks import NETWORKS, build
from recipes.common.options import SILENT
from recipes.pictures.browser import find_chromium, open_page

_ENGINES: tuple[EngineName, ...] = ("numba", "torch", "sklearn")


def _network(name: str) -> nn.Module:
    """A network with random weights: how long an analysis takes depends little on them."""
    torch.manual_seed(0)
    return (build(name, 3, 10) if name in NETWORKS else get_model(name)).eval()


def _noise(images: int, side: int) -> Tensor:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def speed(device: str, quick: bool) -> Iterator[Row]:
    """An analysis by each engine; that of scikit-learn is a loop over its estimators."""
    for name, side in (("lenet5", 32),) if quick else (("alexnet", 32), ("simple_cnn", 32), ("resnet18", 64)):
        network, images = _network(name).to(device), _noise(64 if quick else 512, side).to(device)
        starts = 1 if quick else AnalysisSettings().n_init
        settings = {str(engine): AnalysisSettings(engine=engine, n_init=starts) for engine in _ENGINES}
        sides = {engine: partial(analyze, network, images, settings=own) for engine, own in settings.items()}
        found = in_turns(sides, 1 if quick else 3)
        for engine, row in found.iterrows():
            faster = found.seconds["sklearn"] / row.seconds
            yield {"network": name, "engine": engine, **row, "times as fast as scikit-learn": faster}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the straight line through the logarithms: 1 where the cost grows in proportion."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(device: str, quick: bool) -> Iterator[Row]:
    """An analysis of more filters, of 512 samples, and of more samples, by 512 filters."""
    few, times = (64, (1, 2)) if quick else (512, (1, 2, 4, 8))

    def work(filters: int, samples: int) -> Callable[[], Any]:
        torch.manual_seed(0)
        return partial(analyze, nn.Conv2d(3, filters, 3).to(device), _noise(samples, 12).to(device))

    for what, sizes in {"filters": [(n * few, few) for n in times], "samples": [(few, n * few) for n in times]}.items():
        found = in_turns({str(size): work(*size) for size in sizes}, 1 if quick else 3)
        seconds = found.seconds.tolist()
        grown = {f"{few} x {n}": own for n, own in zip(times, seconds, strict=True)}
        yield {"growth in": what, **grown, "exponent": exponent(list(times), seconds)}


def overhead(device: str, quick: bool) -> Iterator[Row]:
    """What each callback adds to a training epoch of 50,000 images of 32x32, scaled from 60 batches of 128.

    A validation of 512 images (512 of each kind for the comparison) with the callback less one without it.
    """
    batches, size = (4, 128) if quick else (60, 512)
    labels = torch.randint(10, (1024,), generator=torch.Generator().manual_seed(0))
    images = _noise(len(labels), 32)
    loader = DataLoader(TensorDataset(images, labels), 128)
    callbacks: dict[str, Callable[[], pl.Callback]] = {
        "AnomalyFilterCallback": lambda: AnomalyFilterCallback(probe_size=size, log_figures=False),
        "TwoSampleCallback": lambda: TwoSampleCallback(images[:size], images[-size:], log_figures=False),
    }
    options: dict[str, Any] = {**SILENT, "accelerator": device, "devices": 1}
    for name in ("lenet5",) if quick else ("alexnet", "simple_cnn", "lenet5"):
        module = Classifier(_network(name).train())
        epochs = -(-batches // len(loader))
        epoch = pl.Trainer(**options, max_epochs=epochs, limit_val_batches=0)
        seconds = timed(partial(epoch.fit, module, loader, loader))["seconds"] / (epochs * len(loader)) * 50_000 / 128
        sides = {"": pl.Trainer(**options)}
        sides |= {own: pl.Trainer(**options, callbacks=[make()]) for own, make in callbacks.items()}
        validations = {own: partial(trainer.validate, module, loader, verbose=False) for own, trainer in sides.items()}
        found = in_turns(validations, 1 if quick else 5).seconds
        for own in callbacks:
            added = found[own] - found[""]
            yield {"network": name, "callback": own, "epoch (s)": seconds, "added (s)": added, "share": added / seconds}
        yield {"network": name, "callback": "its figures", "epoch (s)": seconds, "added (s)": _figures(module, options)}


def _figures(module: pl.LightningModule, options: dict[str, Any]) -> float:
    """Seconds that the figures of one analysis take: a fit of one batch with them less one without."""
    loader = DataLoader(TensorDataset(_noise(128, 32), torch.arange(128) % 10), 128)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[bool, float] = {}
        for figures in (True, False):
            watcher = AnomalyFilterCallback(probe_size=128, log_figures=figures)
            trainer = pl.Trainer(**options | {"logger": TensorBoardLogger(folder)}, callbacks=[watcher], max_epochs=1,
                                 num_sanity_val_steps=0, log_every_n_steps=1)  # fmt: skip
            sides[figures] = timed(partial(trainer.fit, module, loader, loader))["seconds"]
    return sides[True] - sides[False]


@torch.no_grad()
def _forward(network: nn.Module, images: Tensor) -> None:
    for batch in torch.split(images, 8 if images.shape[3] > 32 else 64):
        network(batch)


_WORK: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "forward": _forward,
    "analyze": partial(analyze, batch_size=8),
    "find_outliers": partial(find_outliers, progress=False),
}


def _prepare(what: str, name: str, images: int, side: int) -> Callable[[], Any]:
    """Return work on a network and images, once a small network has loaded what is compiled."""
    _WORK[what](_network("lenet5"), _noise(200, 32))
    network = _network(name)
    return lambda: _WORK[what](network, _noise(images, side))


def large(device: str, quick: bool) -> Iterator[Row]:
    """An analysis of large networks beside a forward pass, in time and memory, on the CPU."""
    cases = [("resnet18", 512), ("resnet50", 512), ("convnext_base", 512), ("resnet50", 2048), ("convnext_base", 2048)]
    for name, images in [("lenet5", 64)] if quick else cases:
        arguments = (name, images, 32 if quick else 224)
        found = in_fresh_processes({what: partial(_prepare, what, *arguments) for what in ("forward", "analyze")}, 1)
        for side, row in found.iterrows():
            yield {"network": name, "images": images, "side": side, **row}


class _Noise(Dataset[tuple[Tensor, int]]):
    """Images that are made when they are read, as those of a folder are."""

    def __init__(self, images: int, side: int) -> None:
        self.images, self.side = images, side

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(
            3, self.side, self.side, generator=torch.Generator().manual_seed(10_000 * index + self.images)
        ), index % 10


_WATCHERS: dict[str, Callable[[], list[pl.Callback]]] = {
    "none": lambda: [],
    "AnomalyFilterCallback": lambda: [AnomalyFilterCallback(log_figures=False)],
    "AnomalyFilterCallback, training probe": lambda: [AnomalyFilterCallback(probe="train", log_figures=False)],
    "TwoSampleCallback": lambda: [TwoSampleCallback(log_figures=False)],
    "TwoSampleCallback, all images kept": lambda: [TwoSampleCallback(log_figures=False, max_memory_mb=10_000)],
}


def _prepare_fit(name: str, network: str, images: int, side: int) -> Callable[[], Any]:
    """Return a fit of a few batches with two validations, once the callback has loaded what is compiled."""
    _WORK["analyze"](_network("lenet5"), _noise(200, 32))
    module = Classifier(_network(network).train())
    train, val = (DataLoader(_Noise(count, side), 16) for count in (images, images + 1))
    trainer = pl.Trainer(**SILENT, accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=2,
                         limit_val_batches=images // 32, callbacks=_WATCHERS[name]())  # fmt: skip
    return partial(trainer.fit, module, train, val)


def memory(device: str, quick: bool) -> Iterator[Row]:
    """The peak memory of a fit with each callback, of images of 224x224, on the CPU."""
    arguments = ("lenet5", 128, 32) if quick else ("mobilenet_v3_small", 1024, 224)
    found = in_fresh_processes({name: partial(_prepare_fit, name, *arguments) for name in _WATCHERS}, 1)
    for name, row in found.iterrows():
        yield {"network": arguments[0], "side": arguments[2], "callback": name, **row}


def outliers(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a whole data set beside a forward pass, in batches of 64, on the CPU."""
    arguments = ("lenet5" if quick else "alexnet", 300 if quick else 50_000, 32)
    sides = {what: partial(_prepare, what, *arguments) for what in ("forward", "find_outliers")}
    found = in_fresh_processes(sides, 1 if quick else 3)
    for side, row in found.iterrows():
        ratio = row.seconds / found.seconds["forward"]
        yield {"network": arguments[0], "images": arguments[1], "side": side, **row, "times a forward pass": ratio}


def single(device: str, quick: bool) -> Iterator[Row]:
    """`OutlierDetector.score` of a single image beside a forward pass of the model alone, in turns."""
    name, side = ("lenet5", 32) if quick else ("resnet18", 224)
    network, image = _network(name).to(device), _noise(1, side).to(device)
    detector = OutlierDetector(network).fit(_noise(200, side), progress=False)
    sides: dict[str, Callable[[], Any]] = {"forward": partial(_forward, network, image)}
    sides["score"] = partial(detector.score, image)
    found = in_turns(sides, 3 if quick else 100)
    for what, row in found.iterrows():
        ratio = row.seconds / found.seconds["forward"]
        yield {"network": name, "side": side, "work": what, **row, "times a forward pass": ratio}


class _Clocked(nn.Module):
    """A network that writes down when it has run on how many images, in a file for each process."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        super().__init__()
        self.network, self.folder = network, folder

    def forward(self, images: Tensor) -> Any:
        output = self.network(images)
        with (self.folder / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{time.time()} {len(images)}\n")
        return output

    def rate(self) -> float:
        """Images a second of all processes together, after the first batch of any; forgets them."""
        files = [*self.folder.glob("*.txt")]
        lines = [line.split() for file in files for line in file.read_text().splitlines()]
        (begun, _), *rest = sorted((float(end), int(count)) for end, count in lines)
        for file in files:
            file.unlink()
        return sum(count for _, count in rest) / (rest[-1][0] - begun)


def workers(device: str, quick: bool) -> Iterator[Row]:
    """Images a second that a saved detector scores in one process, in two, and in two workers of Ray if it is there.

    On the CPU, by one thread in each process, from the end of the first batch to that of the last.
    """
    name, side, images = ("lenet5", 32, 512) if quick else ("resnet18", 64, 2048)
    with tempfile.TemporaryDirectory() as folder:
        network, file = _Clocked(_network(name), Path(folder)), Path(folder) / "detector.pt"
        OutlierDetector(network).fit(_noise(200, side), progress=False).save(file)
        network.rate()

        def by_lightning(processes: int) -> None:
            strategy = "ddp_spawn" if processes > 1 else "auto"
            options: dict[str, Any] = {**SILENT, "callbacks": [predict.Writer("epoch")], "strategy": strategy}
            trainer = pl.Trainer(**options, accelerator="cpu", devices=processes)
            loader = DataLoader(TensorDataset(_noise(images, side)), 64)
            trainer.predict(predict.Scorer(network, file), loader, return_predictions=False)

        def by_ray() -> None:
            from recipes import ray_data  # late: it is an extra

            ray_data.score(network, file, _noise(images, side), workers=2)

        ways: dict[str, Callable[[], None]] = {"one process": partial(by_lightning, 1)}
        ways["two processes, `Trainer.predict`"] = partial(by_lightning, 2)
        if find_spec("ray"):
            ways["two workers of Ray"] = by_ray
        threads = torch.get_num_threads()
        for way, score in ways.items():
            torch.set_num_threads(1)
            score()
            torch.set_num_threads(threads)
            yield {"network": name, "side": side, "way": way, "images a second": network.rate()}


def photographs(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a folder of photographs at 224 pixels beside reading and a forward pass, and its page."""
    name, images, side = ("lenet5", 120, 32) if quick else ("resnet18", 300, 224)
    with tempfile.TemporaryDirectory() as folder:
        for number, pixels in enumerate(_noise(images, 24)):  # soft patches: a JPEG file of noise is larger than most
            picture = Image.fromarray(pixels.mul(60).add(120).clamp(0, 255).byte().permute(1, 2, 0).numpy())
            picture.resize((500, 375), Image.Resampling.BICUBIC).save(f"{folder}/{number}.jpg")
        sides = {what: partial(_prepare_photographs, what, name, folder, side) for what in ("forward", "find_outliers")}
        found = in_fresh_processes(sides, 1 if quick else 3)
        report = find_outliers(_network(name), DataLoader(FolderImages(folder, side), 64), progress=False)
        page = Path(folder) / "page.html"
        written = timed(partial(report.save_html, page))["seconds"]
        size = {"page (s)": written, "file (MB)": page.stat().st_size / 1e6}
    for what, row in found.iterrows():
        yield {"network": name, "images": images, "side": what, **row, **(size if what == "find_outliers" else {})}


def _prepare_photographs(what: str, name: str, folder: str, side: int) -> Callable[[], Any]:
    """Return work on the photographs of a folder, once a small network has loaded what is compiled."""
    _WORK["find_outliers"](_network("lenet5"), _noise(200, 32))
    network, loader = _network(name), DataLoader(FolderImages(folder, side), 64)
    if what == "find_outliers":
        return lambda: find_outliers(network, loader, progress=False)
    return lambda: [_forward(network, images) for images in loader]


def processes(device: str, quick: bool) -> Iterator[Row]:
    """An analysis by one process and by several, each with one thread, on the CPU."""
    name, side, images = ("lenet5", 32, 64) if quick else ("resnet18", 64, 512)
    for count in (1, 2) if quick else (1, 2, 4):
        loader = DataLoader(TensorDataset(_noise(images, side), torch.arange(images) % 10), 16)
        watcher = AnomalyFilterCallback(probe_size=images, log_figures=False)
        strategy = "ddp_spawn" if count > 1 else "auto"
        trainer = pl.Trainer(**SILENT, accelerator="cpu", devices=count, callbacks=[watcher], strategy=strategy)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        trainer.validate(Classifier(_network(name)), loader, verbose=False)
        torch.set_num_threads(threads)
        seconds = trainer.callback_metrics["anomaly_filters/seconds"].item()
        yield {"network": name, "images": images, "processes": count, "seconds": seconds}


def browser(device: str, quick: bool) -> Iterator[Row]:
    """The filter browser of a report: its size, how long it takes to write, and to open in Chromium if there is one."""
    for name, side in (("lenet5", 32),) if quick else (("alexnet", 32), ("resnet50", 224)):
        images = _noise(64 if quick else 512, side)
        report = analyze(_network(name), images, batch_size=8)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.html"
            written = timed(partial(report.save_html, file, images))
            opened = timed(partial(_open, file)) if find_chromium() else {}
            size = {"file (MB)": file.stat().st_size / 1e6}
            yield {"network": name, **size, **written, **{f"to open, {what}": own for what, own in opened.items()}}


def _open(file: Path) -> None:
    """Start the browser and wait until the page is drawn."""
    with open_page(1280, 900) as page:
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-shown]")


PARTS = {
    part.__name__: part
    for part in (speed, growth, overhead, large, memory, outliers, single, workers, photographs, processes, browser)
}
