"""Copies planted among photographs: which are found, beside CleanVision's. See docs/results/duplicates.md.

`python -m recipes.development.duplicates NAME=FOLDER ... --output FILE.csv` needs the extras `photos` and `rivals`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
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

_IMAGES, _COPIES = 200, 30  # at most, for each folder


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
}


def plant(folder: str, place: Path) -> None:
    """Write photographs of a folder to `place`, and a copy of each kind of 30 of them: `ROOT KIND.jpg`."""
    files = [file for file, _ in FolderImages(folder).samples]
    generator = np.random.default_rng(0)
    files = files[:: -(-len(files) // _IMAGES)]
    copied = generator.choice(len(files), _COPIES, replace=False)
    for number, file in enumerate(files):
        try:
            image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        except OSError:  # broken
            continue
        image.save(place / f"{number}.jpg", quality=95)
        for kind, copy in _COPY.items() if number in copied else ():
            copy(image, generator).save(place / f"{number} {kind}.jpg", quality=50 if kind == "JPEG 50" else 95)


def ours(place: Path) -> list[list[str]]:
    """Find groups of file names."""
    model = load_pretrained().model.eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    images, fingerprints = FolderImages(place), []
    with torch.no_grad():
        for batch, pictures in DataLoader(images, 50):
            model(batch)
            fingerprints.append(Fingerprints.of(pictures, features.pop()))
    groups, problem = find_duplicates(Fingerprints.join(fingerprints))
    assert not problem
    return [[Path(images.samples[position][0]).stem for position in positions] for positions, _ in groups]


def cleanvisions(place: Path) -> list[list[str]]:
    """Find CleanVision's sets of exact and near duplicates."""
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(place))
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
    return [
        [Path(file).stem for file in files]
        for kind in ("exact_duplicates", "near_duplicates")
        for files in lab.info[kind]["sets"]
    ]


def judged(groups: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Count the copies of each kind beside their original, and list pairs of different photographs."""
    together = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    split = [sorted(name.partition(" ")[::2] for name in pair) for pair in together]
    row: dict[str, Any] = {kind: sum(a == (b[0], "") and b[1] == kind for a, b in split) for kind in _COPY}
    others = {tuple(sorted((int(a[0]), int(b[0])))) for a, b in split if a[0] != b[0]}
    return {**row, "other pairs": len(others), "which": " ".join(f"{a}+{b}" for a, b in sorted(others)[:20])}


def main() -> None:
    """Measure every folder, and write a row for each folder and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for name, _, folder in (text.partition("=") for text in options.folders):
        with tempfile.TemporaryDirectory() as place:
            plant(folder, Path(place))
            count = len([*Path(place).iterdir()]) - _COPIES * len(_COPY)
            for method, find in (("ours", ours), ("CleanVision", cleanvisions)):
                rows.append({"folder": name, "photographs": count, "method": method, **judged(find(Path(place)))})
                print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
