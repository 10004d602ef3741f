"""Copies planted among images: which are found, beside CleanVision's. See docs/results/duplicates.md.

`python -m recipes.development.duplicates NAME=FOLDER ... --output FILE.csv` needs the extras `photos` and `rivals`.
With `--untrained SIDE`, images are of SIDE pixels, and features are those of the quickstart's network before training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_anomaly.images import FolderImages
from lightning_anomaly.network.pretrained import load_pretrained
from lightning_anomaly.outliers.duplicates import Fingerprints, find_duplicates

_IMAGES, _COPIES = 300, 70  # for each folder


def _cropped(image: Any, generator: np.random.Generator) -> Any:
    left, top = generator.uniform(0, 0.1, 2)
    box = (left * image.width, top * image.height, (left + 0.9) * image.width, (top + 0.9) * image.height)
    return image.crop(tuple(map(round, box)))


_COPY: dict[str, Callable[[Any, np.random.Generator], Any]] = {
    "JPEG 50": lambda image, _: image,  # see `plant`
    "half size": lambda image, _: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "cropped": _cropped,
    "brighter": lambda image, _: image.point(lambda value: min(255, round(1.1 * value))),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "turned": lambda image, _: image.transpose(Image.Transpose.ROTATE_90),
    "gray": lambda image, _: ImageOps.grayscale(image).convert("RGB"),
}


def plant(folder: str, place: Path) -> None:
    """Write images of a folder to `place`, and one copy of each of 70 of them, ten of a kind: `NUMBER KIND.jpg`."""
    files = [file for file, _ in FolderImages(folder).samples]
    generator = np.random.default_rng(0)
    files = files[:: -(-len(files) // _IMAGES)]
    copied = dict(zip(generator.permutation(len(files))[:_COPIES].tolist(), [*_COPY] * _COPIES, strict=False))
    for number, file in enumerate(files):
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        image.save(place / f"{number}.jpg", quality=95)
        if kind := copied.get(number):
            copy = _COPY[kind](image, generator)
            copy.save(place / f"{number} {kind}.jpg", quality=50 if kind == "JPEG 50" else 95)


def _features(side: int | None) -> tuple[nn.Module, nn.Module]:
    """Return a model, and the layer whose inputs are features."""
    if side is None:
        model = load_pretrained().model.eval()
        return model, [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, model[-1]


def ours(place: Path, side: int | None) -> list[list[str]]:
    """Find groups of file names."""
    model, head = _features(side)
    features: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, args: features.append(args[0].flatten(1)))
    images, fingerprints = FolderImages(place, side or 224), []
    with torch.no_grad():
        for batch, whole in DataLoader(images, 50):
            model(batch)
            fingerprints.append(Fingerprints.of(whole, features.pop()))
    groups, problem = find_duplicates(Fingerprints.join(fingerprints))
    print(problem)
    return [[Path(images.samples[position][0]).stem for position in positions] for positions, *_ in groups]


def cleanvisions(place: Path, side: int | None) -> list[list[str]]:
    """Find CleanVision's sets of exact and near duplicates."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(place))
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    return [
        [Path(file).stem for file in files]
        for kind in ("exact_duplicates", "near_duplicates")
        for files in lab.info[kind]["sets"]
    ]


def judged(groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Count groups, the copies of each kind beside their original, and list the groups of different images."""
    split = [[name.partition(" ")[::2] for name in group] for group in groups]
    row: dict[str, Any] = {
        kind: len({number for group in split for number, made in group if made == kind and (number, "") in group})
        for kind in _COPY
    }
    others = sorted({tuple(sorted({int(number) for number, _ in group})) for group in split})
    others = [numbers for numbers in others if len(numbers) > 1]
    return {
        **row,
        "groups": len(groups),
        "others": len(others),
        "which": " ".join("+".join(map(str, n)) for n in others),
    }


def main() -> None:
    """Measure every folder, and write a row for each folder and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--untrained", type=int, metavar="SIDE")
    options = parser.parse_args()
    rows = []
    for name, _, folder in (text.partition("=") for text in options.folders):
        with tempfile.TemporaryDirectory() as place:
            plant(folder, Path(place))
            count = len([*Path(place).iterdir()]) - _COPIES
            for method, find in (("ours", ours), ("CleanVision", cleanvisions)):
                found = judged(find(Path(place), options.untrained))
                rows.append({"folder": name, "images": count, "method": method, **found})
                print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
