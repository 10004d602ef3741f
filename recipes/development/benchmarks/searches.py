"""What a search for outlier images costs: in a data set, of a single image, in several processes, in a folder."""

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
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_anomaly import OutlierDetector, find_outliers
from lightning_anomaly.images import FolderImages
from recipes import predict
from recipes.common.options import SILENT
from recipes.development.benchmarks.timing import Row, in_fresh_processes, in_turns, timed
from recipes.development.benchmarks.work import WORK, forward, network_of, noise, prepare


def outliers(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a whole data set beside a forward pass, in batches of 64, on the CPU."""
    arguments = ("lenet5" if quick else "alexnet", 300 if quick else 50_000, 32)
    sides = {what: partial(prepare, what, *arguments) for what in ("forward", "find_outliers")}
    found = in_fresh_processes(sides, 0 if quick else 3)
    for side, row in found.iterrows():
        ratio = row.seconds / found.seconds["forward"]
        yield {"network": arguments[0], "images": arguments[1], "side": side, **row, "times a forward pass": ratio}


def single(device: str, quick: bool) -> Iterator[Row]:
    """`OutlierDetector.score` of a single image beside a forward pass of the model alone, in turns."""
    for name, side in (("lenet5", 32),) if quick else (("lenet5", 32), ("resnet18", 224)):
        network, image = network_of(name).to(device), noise(1, side).to(device)
        detector = OutlierDetector(network).fit(noise(200, side), progress=False)
        sides: dict[str, Callable[[], Any]] = {"forward": partial(forward, network, image)}
        sides["score"] = partial(detector.score, image)
        found = in_turns(sides, 3 if quick else 100)
        for what, row in found.iterrows():
            ratio = row.seconds / found.seconds["forward"]
            yield {"network": name, "side": side, "work": what, **row, "times a forward pass": ratio}


class _Clocked(nn.Module):
    """A network that records the time and the size of each batch, in a file for each process."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        super().__init__()
        self.network, self.folder = network, folder

    def forward(self, images: Tensor) -> Any:
        output = self.network(images)
        with (self.folder / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{time.time()} {len(images)}\n")
        return output

    def rate(self) -> float:
        """Return images per second of all processes together since the end of the first batch, and clear the record."""
        files = [*self.folder.glob("*.txt")]
        lines = [line.split() for file in files for line in file.read_text().splitlines()]
        (begun, _), *rest = sorted((float(end), int(count)) for end, count in lines)
        for file in files:
            file.unlink()
        return sum(count for _, count in rest) / (rest[-1][0] - begun)


def workers(device: str, quick: bool) -> Iterator[Row]:
    """Images per second that a saved detector scores in one process, in two, and, if installed, in two workers of Ray.

    On the CPU, with one thread in each process, from the end of the first batch to the end of the last.
    """
    name, side, images = ("lenet5", 32, 512) if quick else ("resnet18", 64, 2048)
    with tempfile.TemporaryDirectory() as folder:
        network, file = _Clocked(network_of(name), Path(folder)), Path(folder) / "detector.pt"
        OutlierDetector(network).fit(noise(200, side), progress=False).save(file)
        network.rate()

        def by_lightning(processes: int) -> None:
            strategy = "ddp_spawn" if processes > 1 else "auto"
            options: dict[str, Any] = {**SILENT, "callbacks": [predict.Writer("epoch")], "strategy": strategy}
            trainer = pl.Trainer(**options, accelerator="cpu", devices=processes)
            loader = DataLoader(TensorDataset(noise(images, side)), 64)
            trainer.predict(predict.Scorer(network, file), loader, return_predictions=False)

        def by_ray() -> None:
            from recipes import ray_data  # late: it is an extra

            ray_data.score(network, file, noise(images, side), workers=2)

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
        for number, pixels in enumerate(noise(images, 24)):  # soft patches: a JPEG file of noise is larger than most
            picture = Image.fromarray(pixels.mul(60).add(120).clamp(0, 255).byte().permute(1, 2, 0).numpy())
            picture.resize((500, 375), Image.Resampling.BICUBIC).save(f"{folder}/{number}.jpg")
        sides = {what: partial(_prepare_photographs, what, name, folder, side) for what in ("forward", "find_outliers")}
        found = in_fresh_processes(sides, 0 if quick else 3)
        report = find_outliers(DataLoader(FolderImages(folder, side), 64), network_of(name), progress=False)
        page = Path(folder) / "page.html"
        written = timed(partial(report.save_html, page))["seconds"]
        size = {"page (s)": written, "file (MB)": page.stat().st_size / 1e6}
    for what, row in found.iterrows():
        ratio = {"times reading and a forward pass": row.seconds / found.seconds["forward"]}
        yield {"network": name, "images": images, "side": what, **row, **ratio, **(size if what != "forward" else {})}


def _prepare_photographs(what: str, name: str, folder: str, side: int) -> Callable[[], Any]:
    """Warm up with a small network, then return the work on the photographs of a folder."""
    WORK["find_outliers"](network_of("lenet5"), noise(200, 32))
    network, loader = network_of(name), DataLoader(FolderImages(folder, side), 8)  # as `forward`; 64 take longer
    if what == "find_outliers":
        return lambda: find_outliers(loader, network, progress=False)
    return lambda: [forward(network, images) for images, _ in loader]
