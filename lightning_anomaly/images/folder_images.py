"""Read a folder of image files, and tell which of its folders are classes, and which are splits."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_anomaly._internal.checks import check_integer
from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.images.batches import WithWholeImage
from lightning_anomaly.images.image_source import scaled

_HIDDEN = {"Thumbs.db", "desktop.ini"}  # of file managers, beside names that begin with a dot
_HIDDEN_FOLDERS = {".git", ".ipynb_checkpoints", ".cache", ".thumbnails"}  # of tools
_DEPTHS = 100  # images, evenly spaced, that tell the depth of a folder's images
_MANY = 500  # images, from which on other processes are worth starting
_HEIF = ": install the package pillow-heif, and call its `register_heif_opener()` first"
_Place = tuple[str, ...]  # the folders that lead to an image
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


class FolderImages(Dataset[Any]):
    """The images in a folder and its subfolders, in the order of their names.

    A file counts as an image by its extension or its first bytes, in any format that Pillow reads. Hardly any is
    decoded yet: an image may prove to be broken when it is read.

    Classes and `splits`, such as train and val, are those of `classes_and_splits`. The data set has the attributes
    `root`, `samples`, `classes` and `targets` of torchvision's `ImageFolder`. `skipped` has the reason for each file
    and folder that is not read, by its path in the folder, without system files. An item is an image for a network and
    the whole one, squeezed into a square of bytes, in which a search for outliers sees frames and captions that the
    network's image may lack.

    `whites` has the value that is white in images of more than 8 bits, by Pillow's mode, such as "I;16": one for the
    folder, so that a dark image stays dark. It is that of the smallest depth that holds the values of up to 100 images,
    evenly spaced: 8, 12, 16 or more bits, or for floating point a power of two. An image with values above it has a
    white of its own, and a warning says so.

    Args:
        folder: The folder.
        size: Images are scaled until they cover a square of this side, and cropped to its middle (pixels).
        transform: Function that turns a Pillow image into a tensor for the network, for example to normalize it,
            instead of scaling it to 0..1 and cropping it.
        num_workers: Number of processes that read the images in a search; 0 reads them in the main one. None takes one
            for each core but two on Linux, where processes can be forked, and none for fewer than 500 images.
        class_depth: See `classes_and_splits`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If there is no such folder, or no image in it, or `size` is not positive.
    """

    def __init__(
        self,
        folder: str | Path,
        size: int = 224,
        transform: Callable[[Any], Tensor] | None = None,
        num_workers: int | None = None,
        class_depth: int | None = None,
    ) -> None:
        self.root, self.size, self.transform = folder, check_integer("size", size, 1), transform
        if transform is not None and not callable(transform):
            raise TypeError(f"Parameter `transform` should be a function of an image or None. Found {transform!r}.")
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "nothing"
            raise ValueError(f"Parameter `folder` should be a folder of images. Found {found} at `{folder}`.")
        names, self.skipped = _list_images(folder)
        if not names:
            skipped = [f"{name} ({reason})" for name, reason in self.skipped.items()]
            raise ValueError(f"`{folder}` should hold images. Found {listed(skipped) or 'no file'}.")
        labels, self.splits = map(list, zip(*classes_and_splits(names, class_depth), strict=True))
        numbers = {label: number for number, label in enumerate(sorted({*labels}))}
        self.samples = [(os.path.join(folder, n), numbers[label]) for n, label in zip(names, labels, strict=True)]
        self.classes = [*numbers] if any(labels) else []
        nested = next((name for name in self.classes if "/" in name and class_depth is None), "")
        self.class_note = nested and (
            f"A class is the path of its folders, such as `{nested}`. If the outermost is the class, say "
            "`class_depth=1`, or `--class-depth 1`."
        )
        self.targets = [number for _, number in self.samples] if self.classes else []
        self.whites = _find_folder_whites([file for file, _ in self.samples[:: -(-len(names) // _DEPTHS)]])
        alone = len(names) < _MANY or sys.platform != "linux" or multiprocessing.current_process().daemon
        default = 0 if alone else max(0, len(os.sched_getaffinity(0)) - 2)  # the network needs some
        self.num_workers = default if num_workers is None else check_integer("num_workers", num_workers, 0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> WithWholeImage:
        return load_image(self.samples[index][0], self.size, self.transform, self.whites)


def load_image(
    file: Any,
    size: int = 224,
    transform: Callable[[Any], Tensor] | None = None,
    whites: Mapping[str, float] | None = None,
) -> WithWholeImage:
    """Load an image from a path or an open file, such as one in memory, as an item of a `FolderImages`.

    The arguments are its arguments and its `whites`; without these, an image of more than 8 bits has a white of its
    own.
    """
    from PIL import Image, ImageOps

    opened, scaling = read_image(file, whites=whites), Image.Resampling.BILINEAR
    whole = _file_tensor(opened.resize((size, size), scaling))
    if transform is not None:
        return WithWholeImage(transform(opened), whole)
    return WithWholeImage(scaled(_file_tensor(ImageOps.fit(opened, (size, size), scaling))), whole)


def _list_images(folder: str | Path) -> tuple[list[str], dict[str, str]]:
    """List the images in a folder, sorted, and the other files with the reason why they are none."""
    from PIL import Image, UnidentifiedImageError

    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    recognized = [name for name, (_, accept) in Image.OPEN.items() if accept]  # by the first bytes
    names, skipped, seen = [], {}, set()

    def skip(error: OSError) -> None:
        skipped[os.path.relpath(error.filename, folder)] = str(error.strerror)

    for place, folders, files in os.walk(folder, onerror=skip, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            skipped[os.path.relpath(place, folder)] = "the same folder as one that is read already"
            folders.clear()
            continue
        seen.add(real)
        for name in {name for name in folders if name.startswith(".")} - _HIDDEN_FOLDERS:
            skipped[os.path.relpath(os.path.join(place, name), folder)] = "hidden, as its name begins with a dot"
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            if file.startswith(".") or file in _HIDDEN:
                continue
            path, suffix = os.path.join(place, file), os.path.splitext(file)[1].lower()
            name = os.path.relpath(path, folder)
            if not os.path.isfile(path):
                skipped[name] = "not a regular file"  # reading a pipe would never end
                continue
            if suffix not in suffixes:
                try:
                    Image.open(path, formats=recognized).close()
                except (UnidentifiedImageError, ValueError):  # the latter of a C header that looks like an XBM
                    skipped[name] = "not an image that Pillow reads"
                    if suffix in (".heic", ".heif"):
                        skipped[name] += _HEIF
                    continue
                except (OSError, Image.DecompressionBombError):
                    pass  # one that cannot be read
            names.append(name)
    return sorted(names, key=lambda name: name.split(os.sep)), dict(sorted(skipped.items()))


def _find_folder_whites(files: Sequence[str]) -> dict[str, float]:
    """Return the value that is white in images of more than 8 bits, by mode."""
    from PIL import Image

    whites = dict[str, float]()
    for file in files:
        if file.lower().endswith((".jpg", ".jpeg")):
            continue  # 8 bits, and opening many takes time
        with suppress(Exception), Image.open(file) as opened:  # a broken one has no depth
            if opened.mode[0] in "IF":
                whites[opened.mode] = max(_white(_file_pixels(opened), opened.mode), whites.get(opened.mode, 0))
    return whites


def read_image(file: Any, side: int | None = None, whites: Mapping[str, float] | None = None) -> Any:
    """Read an image as viewers show it: turned as its EXIF data says, on white, and the first frame of an animation.

    A JPEG file that will be reduced to a `side` (pixels) is read with fewer pixels, which is fast.
    """
    from PIL import Image

    image = _decode_file(file, side)
    if image.mode == "RGB":
        return image
    pixels, known = _file_pixels(image), (whites or {}).get(image.mode, 0)
    white = max(_white(pixels, image.mode), known)
    if 0 < known < white:
        warnings.warn(f"An image has values above {known:g}, white in its folder: it has its own white.", stacklevel=2)
    return Image.fromarray((pixels * (256 / white)).clip(max=255).astype(np.uint8)).convert("RGB")


def _decode_file(file: Any, side: int | None = None) -> Any:
    """Decode an image, into RGB unless it has more than 8 bits, which Pillow would clip at 255."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if side is not None:
            opened.draft("RGB", (side, side))
        image = ImageOps.exif_transpose(opened)
    if image.mode[0] in "IF":
        return image
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _file_pixels(image: Any) -> Any:
    values = np.asarray(image, np.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high < np.inf:
        raise ValueError(f"pixels should be finite and not negative, found {low:g} to {high:g}")
    return values


def _white(pixels: Any, mode: str) -> float:
    highest, depths = pixels.max(), range(129) if mode == "F" else (8, 12, *range(16, 33))
    return next(2.0**bits for bits in depths if highest <= 2.0**bits)


def decoded_hashes(hashes: Tensor, files: Sequence[str]) -> Tensor:
    """Replace the equal ones among hashes `(n,)` of reduced images by those of decoded files, if Pillow reads these."""
    counts, decoded, replaced = Counter(hashes.tolist()), dict[bytes, int](), hashes.clone()
    for place, file in enumerate(files):
        if counts[hashes[place].item()] > 1:
            with suppress(Exception):
                content = hashlib.sha256(Path(file).read_bytes()).digest()
                if content not in decoded:  # identical files are decoded once
                    image = _decode_file(file)
                    pixels = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes())
                    decoded[content] = int.from_bytes(pixels.digest()[:8], "little", signed=True)
                replaced[place] = decoded[content]
    return replaced


def _file_tensor(image: Any) -> Tensor:
    """Return an image as a tensor of bytes `(3, H, W)`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def classes_and_splits(names: Sequence[str], class_depth: int | None = None) -> list[tuple[str, str]]:
    """Return the class and the split of each file, by the folders in its name; empty if there is none.

    The class is the path of the folders, without outer and inner ones that have no siblings in any class. Siblings with
    names such as `train` and `val` are splits, wherever they lie; one called `train` beside `bus` and `car` is a class.

    Args:
        names: Paths of files in their folder.
        class_depth: Number of folders that make a class; None takes all.

    Raises:
        TypeError: If `class_depth` is no integer.
        ValueError: If it is not positive.

    Examples:
        >>> classes_and_splits(["train/cats/1.png", "train/dogs/2.png", "val/cats/3.png"])
        [('cats', 'train'), ('dogs', 'train'), ('cats', 'val')]
        >>> classes_and_splits(["break/images/1.png", "crack/images/2.png"])
        [('break', ''), ('crack', '')]
        >>> classes_and_splits(["wild/cat/1.png", "wild/lion/2.png", "tame/cat/3.png"])
        [('wild/cat', ''), ('wild/lion', ''), ('tame/cat', '')]
    """
    depth = None if class_depth is None else check_integer("class_depth", class_depth, 1)
    places = [tuple(name.split(os.sep)[:-1]) for name in names]
    children = _child_folders(places)
    # Folders that hold several splits, or nothing else.
    parents = {folder for folder, names in children.items() if sum(map(_is_split, names)) >= min(2, len(names))}
    splits, kept = dict[_Place, str](), dict[_Place, _Place]()
    for place in {*places}:
        are_splits = [_is_split(name) and place[:i] in parents for i, name in enumerate(place)]
        kept[place] = tuple(name for name, is_split in zip(place, are_splits, strict=True) if not is_split)
        splits[place] = "/".join(name for name, is_split in zip(place, are_splits, strict=True) if is_split)
    children, classes, common = _child_folders(kept.values()), dict[_Place, str](), _Place()
    while len(children[common]) == 1:
        common = *common, *children[common]
    while any(kept.values()) and all(len(children[rest[:-1]]) == 1 for rest in kept.values() if rest):
        kept = {place: rest[:-1] for place, rest in kept.items()}
    for place, rest in kept.items():
        classes[place] = "/".join(rest[len(common) :][:depth])
    return [(classes[place], splits[place]) for place in places]


def _child_folders(places: Iterable[_Place]) -> dict[_Place, set[str]]:
    """Return the folders in each folder; images beside the outermost ones count as one."""
    children = defaultdict[_Place, set[str]](set)
    for place in {*places}:
        for i, name in enumerate(place or [""]):
            children[place[:i]].add(name)
    return children


def _is_split(name: str) -> bool:
    return not _SPLITS.isdisjoint(re.split(r"[^a-z]+", name.lower()))
