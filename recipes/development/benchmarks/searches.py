"""What a search for outlier images costs: in a data set, of a single image, in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from lightning_anomaly import OutlierDetector, find_outliers
from lightning_anomaly.images import FolderImages
from lightning_anomaly.network.pretrained import load_pretrained
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


def photographs(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a folder of photographs at 224 pixels beside reading and a forward pass, and its page."""
    name, images, side = ("lenet5", 120, 32) if quick else ("resnet18", 300, 224)
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(folder, images)
        sides = {what: partial(_prepare_photographs, what, name, folder, side) for what in ("forward", "find_outliers")}
        found = in_fresh_processes(sides, 0 if quick else 3)
        report = find_outliers(DataLoader(FolderImages(folder, side), 64), network_of(name), progress=False)
        page = Path(folder) / "page.html"
        written = timed(partial(report.save_html, page))["seconds"]
        size = {"page (s)": written, "file (MB)": page.stat().st_size / 1e6}
    for what, row in found.iterrows():
        ratio = {"times reading and a forward pass": row.seconds / found.seconds["forward"]}
        yield {"network": name, "images": images, "side": what, **row, **ratio, **(size if what != "forward" else {})}


_BATCHES = 4, 6, 8, 16, 32  # images of a plain pass


def pieces(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a folder of photographs with the default network beside plain passes of it, by one thread.

    A plain pass takes images at 224 pixels from memory, so many at a time; CPU seconds count.
    """
    images, rounds, sizes = (104, 0, _BATCHES[-2:]) if quick else (240, 1, _BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(folder, images)
        sides = {f"a plain pass, {size} at a time": partial(_prepare_pass, images, size) for size in sizes}
        sides["find_outliers"] = partial(_prepare_search, folder)
        found = in_fresh_processes(sides, rounds)
    passes = found.cpu_seconds[:-1]
    for side, row in found.iterrows():
        ratios = {"times 32 at a time": row.cpu_seconds / passes.iloc[-1]}
        ratios["times the best"] = row.cpu_seconds / passes.min()
        yield {"side": side, "CPU ms": 1000 * row.cpu_seconds / images, "peak_mib": row.peak_mib, **ratios}


def _prepare_pass(images: int, size: int) -> Callable[[], Any]:
    torch.set_num_threads(1)
    network, batch = load_pretrained().model.eval(), noise(size, 224)

    @torch.no_grad()
    def work() -> None:
        for _ in range(-(-images // size)):
            network(batch)

    work()
    return work


def _prepare_search(folder: str) -> Callable[[], Any]:
    torch.set_num_threads(1)
    WORK["find_outliers"](network_of("lenet5"), noise(200, 32))
    return lambda: find_outliers(FolderImages(folder), progress=False)


def workers(device: str, quick: bool) -> Iterator[Row]:
    """`find_outliers` on a folder of photographs, read by the main process or by others, with a pooling, on the CPU."""
    images = 120 if quick else 2000
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(folder, images)
        sides = {
            str(count): partial(find_outliers, FolderImages(folder, num_workers=count), network, progress=False)
            for count in (0, 1, 2)
        }
        for count, row in in_turns(sides, 1 if quick else 3).iterrows():
            yield {"images": images, "processes that read": count, **row}


def _write_photographs(folder: str, images: int) -> None:
    """Write soft patches as files: a JPEG file of noise is larger than most."""
    for number, pixels in enumerate(noise(images, 24)):
        picture = Image.fromarray(pixels.mul(60).add(120).clamp(0, 255).byte().permute(1, 2, 0).numpy())
        picture.resize((500, 375), Image.Resampling.BICUBIC).save(f"{folder}/{number}.jpg")


def _prepare_photographs(what: str, name: str, folder: str, side: int) -> Callable[[], Any]:
    """Warm up with a small network, then return the work on the photographs of a folder."""
    WORK["find_outliers"](network_of("lenet5"), noise(200, 32))
    network, loader = network_of(name), DataLoader(FolderImages(folder, side), 8)  # as `forward`; 64 take longer
    if what == "find_outliers":
        return lambda: find_outliers(loader, network, progress=False)
    return lambda: [forward(network, images) for images, _ in loader]
