"""What does `find_outliers` cost beside a plain forward pass? `python -m recipes.benchmarks.outliers --download`.

A network with random weights is run on all training images, in batches of 64 on both sides: alone and by
`find_outliers`, in turn, each time in a fresh process, whose peak of memory the kernel keeps (Linux). Minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly import find_outliers
from lightning_anomaly.capture.hooks import evaluating
from lightning_anomaly.tables import text_table
from recipes.benchmarks.__main__ import machine
from recipes.benchmarks.cost import resident_peak
from recipes.common.data import load_images, mean_and_std, normalise
from recipes.common.networks import NETWORKS, build
from recipes.common.options import add_data_options, one_sentence_errors

_BATCH = 64  # as `find_outliers` takes of a tensor
_WARM = 200


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser, "cifar10")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="alexnet", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=None, help="number of images, default: all training images")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides, default: %(default)s")
    parser.add_argument("--json", default=None, help="write the numbers to this file")
    return parser.parse_args(arguments)


def forward(network: nn.Module, images: Tensor) -> None:
    """A plain forward pass over all images."""
    with evaluating(network), torch.no_grad():
        for batch in torch.split(images, _BATCH):
            network(batch)


def search(network: nn.Module, images: Tensor) -> None:
    """The same by `find_outliers`."""
    find_outliers(network, images, progress=False)


def measure(options: argparse.Namespace, work: Callable[[nn.Module, Tensor], None]) -> tuple[float, float, float]:
    """Seconds by the clock and of all cores that the work takes, and the peak of a process that does it (MiB)."""
    data = load_images(options.data, data_root=options.data_root, download=options.download)
    torch.manual_seed(0)
    network = build(options.network, data.channels, data.n_classes)
    images = normalise(data.train_images[: options.images], *mean_and_std(data.train_images))
    del data
    work(network, images[:_WARM])  # compiles, or loads what was compiled
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begun = time.perf_counter(), time.process_time()
    work(network, images)
    return time.perf_counter() - begun[0], time.process_time() - begun[1], resident_peak()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and return the numbers."""
    sides = {"forward": forward, "find_outliers": search}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, work in sides.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found[name].append(pool.submit(measure, options, work).result())
            print(name, *(f"{number:.2f}" for number in found[name][-1]), flush=True)
    pairs = list(zip(*found.values(), strict=True))
    clock, processor = ([theirs[kind] / ours[kind] for ours, theirs in pairs] for kind in (0, 1))
    numbers = {
        "machine": machine(),
        "data": Path(options.data).stem,
        "network": options.network,
        "images": options.images or len(load_images(options.data, data_root=options.data_root).train_images),
        "rounds": len(pairs),
        "forward_seconds": median(ours[0] for ours, _ in pairs),
        "find_outliers_seconds": median(theirs[0] for _, theirs in pairs),
        "ratio": median(clock),
        "ratio_of_processor_time": median(processor),
        "ratio_of_processor_time_range": [min(processor), max(processor)],
        "peak_mib": median(theirs[2] for _, theirs in pairs),
        "extra_mib": median(theirs[2] - ours[2] for ours, theirs in pairs),
    }
    rows = [(key, f"{value:.2f}") for key, value in numbers.items() if isinstance(value, float)]
    print(text_table([(f"{numbers['network']}, {numbers['images']} images", "median"), *rows], []))
    if options.json:
        Path(options.json).write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


if __name__ == "__main__":
    one_sentence_errors(run, parse)
