"""Time, memory and recall of `find_duplicates` among many images with 1,000 planted copies. See docs/speed.md.

`python -m recipes.development.many_duplicates 30000 --data-root DIR`. Images are those of CIFAR-10 and Fashion-MNIST,
and beyond these 130,000, mixtures of two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_anomaly.outliers.duplicates import find_duplicates
from lightning_anomaly.outliers.fingerprints import Fingerprints
from recipes.common.data import DATA_SETS, download, load_images
from recipes.common.options import add_data_options, one_sentence_errors
from recipes.development.benchmarks.timing import in_fresh_processes

_COPIES = 1000
_AT_ONCE = 4096


def fingerprints(count: int, names: list[str], root: str | None) -> tuple[Fingerprints, Tensor]:
    """Return fingerprints of images and of copies after them, half of the same frame; and whose copies these are."""
    generator = torch.Generator().manual_seed(0)
    sets = [load_images(name, root) for name in names]
    pixels = [part for data in sets for part in (data.train_images, data.test_images)]
    images = torch.cat([interpolate(part.float() / 255, 32).expand(-1, 3, -1, -1) for part in pixels])
    images = images[torch.randperm(len(images), generator=generator)]
    source = torch.randperm(count, generator=generator)[:_COPIES]
    parts, copies = list[Fingerprints](), torch.empty(_COPIES, 3, 32, 32)
    for start in range(0, count, _AT_ONCE):
        places = torch.arange(start, min(start + _AT_ONCE, count))
        turn = places // len(images)  # others are mixed in, mirrored, so that none is a copy
        part = images[places % len(images)]
        other = images[(places + 1009 * turn) % len(images)].flip(3)
        part = torch.where((turn > 0)[:, None, None, None], 0.5 * (part + other), part)
        inside = (source >= start) & (source < start + _AT_ONCE)
        copies[inside] = part[source[inside] - start]
        parts.append(Fingerprints.of(part))
    half = _COPIES // 2
    frames = 0.95 * interpolate(interpolate(copies[:half], 20, mode="area"), 32, mode="bilinear")  # reduced, darker
    crops = interpolate(copies[half:, :, 2:29, 3:30], 32, mode="bilinear")
    return Fingerprints.join([*parts, Fingerprints.of(frames), Fingerprints.of(crops)]), source


def _prepare(file: Path) -> Callable[[], Any]:
    prints = Fingerprints(*torch.load(file))
    return lambda: torch.save(find_duplicates(prints), file)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int)
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, default=["cifar10", "fashion_mnist"])
    add_data_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measure one number of images, and print what was found."""
    if options.download:
        download(options.data, options.data_root)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fingerprints"
        prints, source = fingerprints(options.images, options.data, options.data_root)
        torch.save(tuple(prints), file)
        del prints
        row = in_fresh_processes({"search": partial(_prepare, file)}, 1).loc["search"]
        groups, _ = torch.load(file)
    of = {place: number for number, (group, *_) in enumerate(groups) for place in group}
    pairs = zip(source.tolist(), range(options.images, options.images + _COPIES), strict=True)
    found = torch.tensor([of.get(one, -1) == of.get(other) for one, other in pairs]).float()
    print({
        "images": options.images,
        **row.round(1).to_dict(),
        "kB for each": round(float(row.peak_mib) * 2**20 / 1000 / (options.images + _COPIES), 1),
        "same frame": found[: _COPIES // 2].mean().item(),
        "cropped": found[_COPIES // 2 :].mean().item(),
    })  # fmt: skip


if __name__ == "__main__":
    one_sentence_errors(run, parse)
