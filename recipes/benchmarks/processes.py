"""What does each of several processes do in an analysis? `python -m recipes.benchmarks.processes --download`, minutes.

A network with random weights looks at images. Then processes on this machine (gloo, one thread each), each with the
maps of its part of the samples, analyse them twice: as in 0.1.0, where all got all maps, process 0 analysed them and
all got its report; and as now, where each gets the maps of its filters and does its share. Bytes and memory are those
in the books of the kernel, which is Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from lightning_anomaly import AnalysisSettings, AnomalyReport
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.maps import STATISTICS, LayerMaps
from lightning_anomaly.capture.probe import run as run_network
from lightning_anomaly.distributed import sample_order
from lightning_anomaly.shared_analysis import OutputSpec, analyze_shared
from lightning_anomaly.tables import text_table
from recipes.common.data import load_images, mean_and_std, normalise, split
from recipes.common.networks import build
from recipes.common.options import add_data_options, one_sentence_errors

__all__ = ["measure", "parse", "run"]

Maps = dict[str, LayerMaps]
Row = dict[str, Any]
_AT_ONCE = 8  # images in a forward pass
_SIDES = {"alexnet": 32, "resnet50": 224, "lenet5": 32}  # of an image (pixels)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser, "cifar10")
    parser.add_argument("--networks", nargs="+", choices=list(_SIDES), default=("alexnet", "resnet50"))
    parser.add_argument("--samples", type=int, default=512, help="probe images, default: %(default)s")
    parser.add_argument("--processes", nargs="+", type=int, default=(2,), help="how many, default: %(default)s")
    parser.add_argument("--json", default=None, help="write the numbers to this file")
    return parser.parse_args(arguments)


def capture(name: str, images: Tensor) -> Maps:
    """The maps of a network with random weights, for images `(N, 3, H, W)` scaled to its size."""
    torch.manual_seed(0)
    network: nn.Module = resnet50() if name == "resnet50" else build(name, 3, 10)
    settings = AnalysisSettings()
    taken = MapCapture(select_layers(network), max_map_side=settings.max_map_side)
    for part in torch.split(images, _AT_ONCE):
        run_network(network, functional.interpolate(part, _SIDES[name], mode="bilinear"), taken)
    return taken.maps


def deal(maps: Maps, world: int, folder: Path) -> None:
    """Leaves the maps of each process's samples in a file."""
    for rank in range(world):
        own = {}
        for name, layer in maps.items():
            batches = list(torch.split(layer.maps[rank::world], _AT_ONCE))
            statistics = list(torch.split(torch.cat(layer.statistics)[rank::world], _AT_ONCE))
            # Sparsity is no part of this: a share of the zeros will do, another for each.
            zeros = None if layer.zeros is None else (layer.zeros + rank) // world
            size = sum(map(len, batches))
            own[name] = LayerMaps([b.clone() for b in batches], size, layer.size, zeros, None, statistics)
        torch.save(own, folder / f"{rank}.pt")


def first_alone(maps: Maps, samples: int) -> AnomalyReport:
    """As in 0.1.0: all processes get all maps, process 0 analyses them, and all get its report."""
    world, rank = dist.get_world_size(), dist.get_rank()
    counts: list[Any] = [None] * world
    dist.all_gather_object(counts, next(iter(maps.values())).count)
    order = sample_order(counts, samples)
    joined = {}
    for name, layer in maps.items():
        shape = layer.batches[0].shape[1:]
        pixels = shape[1:].numel()
        padded = torch.zeros(max(counts), shape[0], pixels + len(STATISTICS))
        padded[: layer.count, :, :pixels] = layer.maps.reshape(-1, shape[0], pixels)
        padded[: layer.count, :, pixels:] = torch.cat(layer.statistics)
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        zeros = torch.zeros(shape[0], dtype=torch.int64) if layer.zeros is None else layer.zeros.clone()
        dist.all_reduce(zeros)
        if rank == 0:
            rows = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])[order]
            own, statistics = rows[..., :pixels].reshape(-1, *shape), rows[..., pixels:]
            joined[name] = LayerMaps([own], samples, layer.size, zeros.double(), statistics=[statistics])
    report = [analyze_maps(joined, AnalysisSettings()) if rank == 0 else None]
    dist.broadcast_object_list(report, src=0)
    assert report[0] is not None
    return report[0]


def shares(maps: Maps, samples: int) -> AnomalyReport:
    """As now: every process does its share."""
    return analyze_shared(maps, None, AnalysisSettings(), {}, limit=samples, spec=OutputSpec()).report


WAYS: Mapping[str, Callable[[Maps, int], AnomalyReport]] = {"first alone": first_alone, "shares": shares}


@dataclass(frozen=True)
class Meter:
    """What the kernel knows of this process: bytes written, sockets included; memory and its peak (MiB)."""

    written: int
    resident: float
    peak: float

    @classmethod
    def read(cls) -> Meter:
        """What it knows now."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        resident, peak = (int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
        return cls(int(io["wchar"]), resident, peak)


def work(way: str, rank: int, world: int, samples: int, folder: Path) -> Row:
    """One process of an analysis: seconds, CPU seconds, megabytes sent, MiB held before and at the peak."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / way.replace(' ', '-')}", rank=rank, world_size=world)
    few = LayerMaps([torch.rand(32, 2, 4, 4)], 32, (4, 4), torch.zeros(2), statistics=[torch.rand(32, 2, 5)])
    with torch.no_grad():
        analyze_maps({"few": few}, AnalysisSettings())  # loads what is compiled
        maps = torch.load(folder / f"{rank}.pt", weights_only=False)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
        dist.barrier()
        before, begun, used = Meter.read(), time.perf_counter(), time.process_time()
        report = WAYS[way](maps, samples)
        dist.barrier()
        seconds, used, after = time.perf_counter() - begun, time.process_time() - used, Meter.read()
    dist.destroy_process_group()
    return {
        "rank": rank,
        "seconds": seconds,
        "cpu_seconds": used,
        "sent_mb": (after.written - before.written) / 1e6,
        "before_mib": before.resident,
        "peak_mib": after.peak,
        "digest": digest(report) if rank == 0 else "",
    }


def digest(report: AnomalyReport) -> str:
    """What is the same for two reports with the same values, to the bit."""
    found = hashlib.sha256(repr(report.notes).encode())
    for name, layer in report.layers.items():
        found.update(repr((name, layer.verdicts)).encode())
        for field in ("points", "labels", "outliers", "isolated", "calinski_harabasz", "explained", "outlier_scores"):
            found.update(getattr(layer, field).contiguous().numpy().tobytes())
    return found.hexdigest()


def measure(network: str, images: Tensor, worlds: Sequence[int]) -> list[Row]:
    """What each process does and holds, for every number of processes and way."""
    maps = capture(network, images)
    filters = sum(layer.batches[0].shape[1] for layer in maps.values())
    rows: list[Row] = []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            deal(maps, world, Path(folder))
            found: dict[str, list[Row]] = {}
            for way in WAYS:
                with ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool:
                    futures = [pool.submit(work, way, rank, world, len(images), Path(folder)) for rank in range(world)]
                    found[way] = [future.result() for future in futures]
        same = {own[0]["digest"] for own in found.values()}
        rows += [
            {
                "network": network,
                "filters": filters,
                "samples": len(images),
                "processes": world,
                "way": way,
                "same_report": len(same) == 1,
                "each": sorted(own, key=lambda row: row["rank"]),
            }
            for way, own in found.items()
        ]
    return rows


def table(rows: Sequence[Row]) -> str:
    """The numbers as a table, the largest of any process each, and of bytes the sum."""
    lines: list[Sequence[str]] = [
        ("network", "processes", "way", "wall (s)", "CPU, most (s)", "sent (MB)", "held (MiB)", "at the peak", "same")
    ]
    for row in rows:
        each = row["each"]
        largest = {key: max(own[key] for own in each) for key in ("seconds", "cpu_seconds", "before_mib", "peak_mib")}
        sent = sum(own["sent_mb"] for own in each)
        lines.append(
            (
                row["network"],
                str(row["processes"]),
                row["way"],
                f"{largest['seconds']:.2f}",
                f"{largest['cpu_seconds']:.2f}",
                f"{sent:.1f}",
                f"{largest['before_mib']:.0f}",
                f"{largest['peak_mib']:.0f}",
                "yes" if row["same_report"] else "NO",
            )
        )
    return text_table(lines, [])


def run(options: argparse.Namespace) -> list[Row]:
    """Measure, print a table, and return the numbers."""
    data = load_images(options.data, data_root=options.data_root, download=options.download)
    data = split(data, 64, options.samples, 0)
    images = normalise(data.val_images, *mean_and_std(data.train_images)).expand(-1, 3, -1, -1)
    rows: list[Row] = []
    for network in options.networks:
        rows += measure(network, images, options.processes)
        print(table(rows), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    one_sentence_errors(run, parse)
