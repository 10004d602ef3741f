"""How fast is it, and what does it cost? `python -m recipes.benchmarks --download`, minutes on two cores.

Compares both engines with loops over scikit-learn on the maps of trained networks, measures how the cost grows,
what the callbacks add to a training epoch, what large networks take in time and memory on 224x224 images, and what
others take that fit many mixtures at once. Large networks take longer than all else. With `--device` it measures
instead what an analysis costs a training there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from lightning_anomaly import AnalysisSettings
from recipes.benchmarks.cost import comparison_overhead, growth, large, overhead
from recipes.benchmarks.device import Subject, device_tables, measure_device, noise
from recipes.benchmarks.peers import peers
from recipes.benchmarks.speed import Row, live_points, speed
from recipes.common.data import ImageData, load_images, make_loaders, mean_and_std, normalise, split
from recipes.common.maps import capture
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import SILENT, add_data_options, one_sentence_errors, quiet

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00")
PARTS = ("speed", "growth", "overhead", "large", "peers")


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        networks: Networks whose maps are clustered, the first one's filters also in growing numbers.
        train: Training images of the networks whose maps are clustered.
        epochs: Epochs they are trained for; ResNet-18 for a tenth of that, on images of twice the side.
        probe: Probe images.
        subset: Filters that scikit-learn gets.
        rounds: Turns that every side takes.
        filters: Numbers of filters, as for the next two.
        samples: Numbers of samples.
        components: Numbers of components.
        batches: Batches on which an epoch is timed.
        side: Side of the large networks' images (pixels).
        compared: Training images, and as many validation images, of which a network's responses are compared.
        large: Large networks of torchvision's, and numbers of images.
    """

    networks: Sequence[str] = ("alexnet", "simple_cnn", "lenet5", "resnet18")
    train: int = 4000
    epochs: int = 10
    probe: int = 512
    subset: int = 64
    rounds: int = 3
    filters: Sequence[int] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    samples: Sequence[int] = (128, 256, 512, 1024, 2048, 4096)
    components: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    batches: int = 60
    side: int = 224
    compared: int = 1024
    large: Sequence[tuple[str, int]] = (
        ("resnet18", 512),
        ("resnet50", 512),
        ("convnext_base", 512),
        ("resnet50", 2048),
        ("convnext_base", 2048),
    )


QUICK = Sizes(("lenet5",), 400, 1, 64, 2, 1, (16, 32), (64, 128), (2, 3), 4, 32, 100, (("resnet18", 64),))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser, "cifar10")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None, help="what it costs there, and nothing else")
    parser.add_argument("--picture", default=None, help="write the figure to this PNG file")
    parser.add_argument("--json", default=None, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; the numbers say nothing")
    return parser.parse_args(arguments)


def train(name: str, data: ImageData, sizes: Sizes) -> tuple[nn.Module, Tensor]:
    """A trained network, and the validation images as it takes them `(N, C, H, W)`."""
    pl.seed_everything(0, verbose=False)
    if name == "resnet18":
        data = replace(data, train_images=_for_resnet(data.train_images), val_images=_for_resnet(data.val_images))
    network: nn.Module = resnet18(num_classes=data.n_classes) if name == "resnet18" else build(name, 3, data.n_classes)
    epochs = -(-sizes.epochs // 10) if name == "resnet18" else sizes.epochs
    trainer = pl.Trainer(max_epochs=epochs, limit_val_batches=0, **SILENT)
    trainer.fit(Classifier(network, 5e-4), *make_loaders(data, 64))
    return network.cpu(), normalise(data.val_images, *mean_and_std(data.train_images))


def _for_resnet(images: Tensor) -> Tensor:
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print tables, and return the numbers."""
    quiet()
    sizes = QUICK if options.quick else Sizes()
    numbers: dict[str, Any] = {"machine": machine()}
    print(numbers["machine"])

    def found(part: str, rows: Sequence[Row]) -> None:
        """Prints at once: what is interrupted has said something."""
        numbers[part] = [*_rows(numbers, part), *rows]
        print(tables({part: rows}), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(numbers, indent=1) + "\n")

    for name, number in sizes.large if "large" in options.parts and not options.device else []:
        found("large", [large(name, sizes.side, number)])
    if not options.device and set(options.parts) <= {"large"}:  # noise is enough
        return numbers
    numbers["data"] = options.data
    data = load_images(options.data, data_root=options.data_root, download=options.download)
    if data.channels == 1:  # ResNet-18 takes three
        data = replace(
            data, train_images=data.train_images.expand(-1, 3, -1, -1), val_images=data.val_images.expand(-1, 3, -1, -1)
        )
    part = split(data, sizes.train, max(sizes.samples), 0)
    if options.device:
        measure_device(torch.device(options.device), subjects(data, options.quick, sizes), found)
        return numbers
    if "overhead" in options.parts:
        whole = split(data, sizes.train if options.quick else None, sizes.probe, 0)
        for name in sizes.networks[:3]:  # the paper's
            found("overhead", [overhead(name, build(name, 3, data.n_classes), whole, 64, sizes.batches, 5)])
        whole = split(data, sizes.train if options.quick else None, sizes.compared, 0)
        for name in sizes.networks[:3]:
            compared = comparison_overhead(name, build(name, 3, data.n_classes), whole, 128, sizes.batches, 5)
            found("comparison", [compared])
    for name in sizes.networks if {"speed", "growth", "peers"}.intersection(options.parts) else []:
        network, images = train(name, part, sizes)
        maps = capture(network, images[: sizes.probe], AnalysisSettings())
        if "speed" in options.parts:
            found("speed", speed(name, maps, sizes.subset, sizes.rounds))
        if "peers" in options.parts and name == sizes.networks[0]:
            found("peers", peers(name, live_points(maps)[0], sizes.subset, sizes.rounds))
        if "growth" in options.parts and name == sizes.networks[0]:
            points, _ = live_points(capture(network, images, AnalysisSettings()))
            found("growth", growth(points, sizes.filters, sizes.samples, sizes.components, sizes.rounds))
    if options.picture:
        draw(numbers, options.picture)
    return numbers


def subjects(data: ImageData, quick: bool, sizes: Sizes) -> list[Subject]:
    """What is trained on a device: AlexNet on the images, and ResNet-50 on as many of noise."""
    first = sizes.networks[0]
    train, val = make_loaders(split(data, sizes.train if quick else None, sizes.probe, 0), 128)
    name, make = (
        ("lenet5", partial(build, "lenet5", 3, 10)) if quick else ("resnet50", partial(resnet50, num_classes=10))
    )
    large = noise(64 * (sizes.batches + 4) if quick else 50_000, sizes.side, 64), noise(sizes.probe, sizes.side, 64)
    batches = 1 if quick else sizes.batches
    return [
        Subject(first, partial(build, first, 3, data.n_classes), train, val, batches, sizes.rounds),
        Subject(f"{name} on noise", make, *large, batches, sizes.rounds),
    ]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("torch", "scikit-learn", "numba", "lightning")
    return {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages if find_spec(name.replace("scikit-learn", "sklearn"))},
    }


def tables(numbers: Mapping[str, Any]) -> str:
    """The numbers as Markdown tables, those parts that were measured."""
    lines: list[str] = []
    if _rows(numbers, "speed"):
        lines += ["", "times faster than a loop over scikit-learn on one thread / on all cores (range over rounds)", ""]
        lines += ["| network, live filters | what | seconds | with numba | plain torch | same K | same verdict |"]
        lines += ["|" + " --- |" * 7]
    for row in _rows(numbers, "speed"):
        seconds = " / ".join(f"{row[f'{side}_seconds']:.3g}" for side in ("numba", "torch", "loop", "joblib"))
        ratios = [
            " / ".join(_with_range(row, f"{ours}_over_{theirs}") for theirs in ("loop", "joblib"))
            for ours in ("numba", "torch")
        ]
        lines.append(
            f"| {row['network']}, {row['filters']} ({row['subset']} by scikit-learn) | {row['case']} | {seconds} | "
            f"{ratios[0]} | {ratios[1]} | {row['same_k']:.3f} | {row['same_verdict']:.3f} |"
        )
    if _rows(numbers, "growth"):
        lines += ["", "| growth in | seconds | exponent |", "| --- | --- | --- |"]
    for row in _rows(numbers, "growth"):
        cells = ", ".join(f"{size}: {value:.3g}" for size, value in zip(row["sizes"], row["seconds"], strict=True))
        lines.append(f"| {row['of']} | {cells} | {row['exponent']:.2f} |")
    if _rows(numbers, "overhead"):
        parts = ("added", "capture", "pca", "clustering", "rest", "figures")
        lines += ["", f"| network | epoch (s) | share of it | {' | '.join(f'{name} (s)' for name in parts)} |"]
        lines += ["|" + " --- |" * (3 + len(parts))]
    for row in _rows(numbers, "overhead"):
        cells = " | ".join(f"{row[f'{name}_seconds']:.3g}" for name in parts)
        lines.append(f"| {row['network']} | {row['epoch_seconds']:.1f} | {100 * row['share']:.2f}% | {cells} |")
    for row in _rows(numbers, "overhead")[:1]:
        lines.append(
            f"\n(an epoch of {row['train_images']} images in batches of {row['batch_size']}, scaled from "
            f"{row['timed_batches']} batches; a probe of {row['probe']})"
        )
    if _rows(numbers, "comparison"):
        lines += [
            "",
            "| comparison | epoch (s) | share of it | of five | added (s) | outside (s) | forward alone (s) |",
        ]
        lines += ["|" + " --- |" * 7]
    for row in _rows(numbers, "comparison"):
        shares = f"{100 * row['share']:.2f}% | {100 * row['share'] / 5:.2f}%"
        cells = " | ".join(f"{row[f'{name}_seconds']:.3g}" for name in ("added", "comparison", "forward"))
        lines.append(f"| {row['network']} | {row['epoch_seconds']:.1f} | {shares} | {cells} |")
    for row in _rows(numbers, "comparison")[:1]:
        lines.append(
            f"\n(an epoch of {row['train_images']} images in batches of {row['batch_size']}, scaled from "
            f"{row['timed_batches']} batches; a `TwoSampleCallback` with {row['compared']} images of each kind, "
            "and the same comparison outside of a training)"
        )
    if _rows(numbers, "peers"):
        lines += ["", "| network, live filters | what | who | seconds | CPU seconds | clusters as scikit-learn's |"]
        lines += ["|" + " --- |" * 6]
    for row in _rows(numbers, "peers"):
        measured = [f"{row[key]:.3g}" for key in ("seconds", "cpu_seconds", "same_clusters") if key in row]
        columns = [f"{row['network']}, {row['filters']}", row["task"], row["peer"], *measured]
        columns += [row["said"]] if "said" in row else []
        lines.append(f"| {' | '.join(columns + [''] * (6 - len(columns)))} |")
    if _rows(numbers, "large"):
        lines += ["", "| network, filters | images | seconds | CPU seconds | MiB of maps | MiB more at the peak |"]
        lines += ["|" + " --- |" * 6]
    for row in _rows(numbers, "large"):
        lines.append(
            f"| {row['network']}, {row['filters']} | {row['images']} of {row['side']}x{row['side']} | "
            f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['maps_mib']:.0f} | {row['extra_mib']:.0f} |"
        )
    return "\n".join(lines + device_tables(numbers))


def _rows(numbers: Mapping[str, Any], part: str) -> list[Row]:
    return list(numbers.get(part, []))


def _with_range(row: Row, key: str) -> str:
    low, high = row[f"{key}_range"]
    return f"{row[key]:.0f}x" if low == high else f"{row[key]:.0f}x ({low:.0f}-{high:.0f})"


def draw(numbers: Mapping[str, Any], path: str) -> None:
    """Draw what was measured of speed, growth and overhead, side by side."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    speeds, sizes, shares = figure.subplots(1, 3, width_ratios=[1.6, 1, 1])
    rows = [row for row in _rows(numbers, "speed") if row["case"] != "mixtures"]
    for i, (ours, theirs) in enumerate(product(("numba", "torch"), ("loop", "joblib"))):
        places = [place + 0.2 * i - 0.3 for place in range(len(rows))]
        cores = "one thread" if theirs == "loop" else "all cores"
        label = f"{'with numba' if ours == 'numba' else 'plain torch'}; scikit-learn on {cores}"
        speeds.bar(places, [row[f"{ours}_over_{theirs}"] for row in rows], 0.2, label=label, color=_COLOURS[i])
    cases = [row["case"].removeprefix("analysis, ").replace(" to scikit-learn", "").replace(" by scikit-learn", "")
             for row in rows]  # fmt: skip
    names = ["\n".join([row["network"], *case.split()]) for row, case in zip(rows, cases, strict=True)]
    speeds.set_xticks(range(len(rows)), names, fontsize=8)
    speeds.set(title="Whole analysis, times faster than scikit-learn", ylabel="times faster", yscale="log")
    speeds.margins(y=0.3)  # room for the legend
    for i, row in enumerate(_rows(numbers, "growth")):
        label = f"{row['of']}, exponent {row['exponent']:.2f}"
        sizes.loglog(row["sizes"], row["seconds"], "o-", color=_COLOURS[i], label=label)
    sizes.set(title="Clustering", xlabel="number of filters, samples or components", ylabel="seconds")
    bottom = [0.0] * len(_rows(numbers, "overhead"))
    for i, part in enumerate(("capture", "pca", "clustering", "rest")):
        # A rest below 0 is what the parts, measured one by one, differ by from the whole.
        seconds = [max(0.0, row[f"{part}_seconds"]) for row in _rows(numbers, "overhead")]
        heights = [100 * s / row["epoch_seconds"] for s, row in zip(seconds, _rows(numbers, "overhead"), strict=True)]
        places = [row["network"] for row in _rows(numbers, "overhead")]
        shares.bar(places, heights, 0.5, bottom, label=part, color=_COLOURS[i])
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    shares.set(title="Callback, per cent of a training epoch", ylabel="per cent")
    for axes in (speeds, sizes, shares):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
