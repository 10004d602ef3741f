"""Copies planted among images: which are found. See docs/results/duplicates.md.

`python -m recipes.development.duplicates NAME=FOLDER ... --output FILE.csv` needs the extra `rivals`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from lightning_anomaly.images import FolderImages
from lightning_anomaly.outliers.duplicates import find_duplicates
from lightning_anomaly.outliers.fingerprints import Fingerprints

_IMAGES, _COPIED = 700, 20  # at most, for each folder
_MOST_SIDE = 800  # to which larger images are reduced first (pixels)


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
    """Write images of a folder to `place`, and copies of 20 of them, one of each kind: `NUMBER KIND.png`."""
    files = [file for file, _ in FolderImages(folder).samples]
    files = files[:: -(-len(files) // _IMAGES)]
    generator = np.random.default_rng(1)
    copied = generator.choice(len(files), _COPIED, replace=False)
    for number, file in enumerate(files):
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        image.thumbnail((_MOST_SIDE, _MOST_SIDE))
        image.save(place / f"{number}.png", compress_level=1)
        for kind, copy in _COPY.items() if number in copied else ():
            name, options = (".jpg", {"quality": 50}) if kind == "JPEG 50" else (".png", {"compress_level": 1})
            copy(image, generator).save(place / f"{number} {kind}{name}", **options)


Groups = list[list[tuple[int, str]]]


def found(place: Path, size: int) -> Iterator[tuple[Groups, Groups]]:
    """Yield our groups and CleanVision's, with numbers and kinds, of seven rounds and of all copies at once.

    In each round, an original has a copy of another kind.
    """
    from cleanvision.issue_managers.duplicate_issue_manager import get_hash

    images = FolderImages(place, size)
    fingerprints = Fingerprints.join([Fingerprints.of(whole) for _, whole in DataLoader(images, 50)])
    hashes = [get_hash(Image.open(file), {"hash_type": "phash", "hash_size": 8}) for file, _ in images.samples]
    kinds, names = ["", *_COPY], [Path(file).stem.partition(" ")[::2] for file, _ in images.samples]
    made = [(int(number), kind) for number, kind in names]
    order = sorted({number for number, kind in made if kind})
    for turn in range(len(_COPY) + 1):
        chosen = [
            place
            for place, (number, kind) in enumerate(made)
            if not kind or turn == len(_COPY) or (order.index(number) + turn) % len(_COPY) == kinds.index(kind) - 1
        ]
        groups, problem = find_duplicates(fingerprints, torch.tensor(chosen))
        print(problem or f"{len(groups)} groups", flush=True)
        same = dict[str, list[int]]()
        for position in chosen:
            same.setdefault(hashes[position], []).append(position)
        ours = [[made[chosen[place]] for place in group] for group, *_ in groups]
        yield ours, [[made[position] for position in group] for group in same.values() if len(group) > 1]


def judged(rounds: list[Groups]) -> dict[str, Any]:
    """Count the copies of each kind beside their original and the groups, and list the groups of different images."""
    copies = [
        {(number, kind) for group in one for number, kind in group if kind and (number, "") in group} for one in rounds
    ]
    groups = [group for one in rounds[:-1] for group in one]
    kinds = {kind: sum(made == kind for one in copies[:-1] for _, made in one) for kind in _COPY}
    others = {tuple(sorted({number for number, _ in group})) for group in groups}
    which = [" + ".join(map(str, numbers)) for numbers in sorted(others) if len(numbers) > 1]
    return {
        **kinds,
        "same frame": sum(kinds.values()) - kinds["cropped"],
        "all at once": len(copies[-1]),
        "groups": round(len(groups) / len(rounds[:-1]), 1),
        "others": len(which),
        "which": ", ".join(which),
    }


def main() -> None:
    """Measure every folder, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224, help="side to which images are reduced (pixels)")
    options = parser.parse_args()
    rows = []
    for name, _, folder in (text.partition("=") for text in options.folders):
        with tempfile.TemporaryDirectory() as place:
            plant(folder, Path(place))
            count = len([*Path(place).iterdir()]) - _COPIED * len(_COPY)
            ours, theirs = map(judged, map(list, zip(*found(Path(place), options.size), strict=True)))
            rival = {f"CleanVision: {part}": theirs[part] for part in ("same frame", "cropped", "others")}
            rows.append({"folder": name, "images": count, **ours, **rival})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
