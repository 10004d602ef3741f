"""Read a folder of image files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_anomaly._internal.tables import listed
from lightning_anomaly.images.source import WithWholeImage, scaled

_HIDDEN = {"Thumbs.db", "desktop.ini"}  # of file managers, beside names that begin with a dot
_HEIF = ": install the package pillow-heif, and call its `register_heif_opener()` first"


class FolderImages(Dataset[Any]):
    """The images in a folder and its subfolders, in the order of their names.

    A file counts as an image by its extension or its first bytes, in any format that Pillow reads. Nothing is decoded
    yet: an image may prove to be broken when it is read.

    An image's class is the name of the folder that it lies in, so `train/cats` and `val/cats` are one class. The data
    set has the attributes `root`, `samples`, `classes` and `targets` of torchvision's `ImageFolder`, and `labels`, the
    name of each image's class. `skipped` gives the reason for each file and folder that is not read, by its path in the
    folder; system files are not listed. An item is an image for a network and the whole one, squeezed into a
    square of bytes, in which a search for outliers sees frames and captions that the network's image may lack.

    Args:
        folder: The folder.
        size: Images are scaled until they cover a square of this side, and cropped to its middle (pixels).
        gray: Whether images have one channel instead of three.
        transform: Function that turns a Pillow image into a tensor for the network, instead of scaling and cropping.

    Raises:
        ValueError: If there is no such folder, or no image in it.
    """

    def __init__(
        self, folder: str | Path, size: int = 224, gray: bool = False, transform: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.root, self.transform = folder, transform
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "nothing"
            raise ValueError(f"Parameter `folder` should be a folder of images. Found {found} at `{folder}`.")
        names, self.skipped = _list_images(folder)
        if not names:
            skipped = [f"{name} ({reason})" for name, reason in self.skipped.items()]
            raise ValueError(f"`{folder}` should hold images. Found {listed(skipped) or 'no file'}.")
        folders = [name.split(os.sep)[:-1] for name in names]
        labels = [parts[-1] if parts else "" for parts in folders]  # "" for a file beside the subfolders
        classes = sorted({*labels})
        targets = {label: target for target, label in enumerate(classes)}
        self.samples = [(os.path.join(folder, n), targets[label]) for n, label in zip(names, labels, strict=True)]
        self.classes = classes if classes != [""] else []
        self.labels = labels if self.classes else None
        self.targets = [target for _, target in self.samples] if self.labels else []
        self.shape = (1 if gray else 3, size, size)
        self.scaling = f"scaled to {size}x{size} pixels and to 0..1"  # a description for the user
        self._moments: tuple[Tensor, Tensor] | None = None

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Subtract the mean of each channel from now on, and divide by its standard deviation."""
        if any(mean) or any(deviation != 1 for deviation in std):
            self._moments = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
            self.scaling += f", then normalized by the mean {listed(mean)} and the standard deviation {listed(std)}"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> WithWholeImage:
        from PIL import Image, ImageOps

        channels, side, _ = self.shape
        size, scaling = (side, side), Image.Resampling.BILINEAR
        opened = read_image(self.samples[index][0], "L" if channels == 1 else "RGB")
        whole = _channels_first(np.array(opened.resize(size, scaling)))
        if self.transform is not None:
            return WithWholeImage(self.transform(opened), whole)
        image = scaled(_channels_first(np.array(ImageOps.fit(opened, size, scaling))))
        return WithWholeImage(image if self._moments is None else (image - self._moments[0]) / self._moments[1], whole)


def probe_positions(images: FolderImages, count: int) -> range:
    """Choose evenly spaced images of a folder, as the first ones are of few classes."""
    return range(0, len(images), -(-len(images) // count))[:count]


def _list_images(folder: str | Path) -> tuple[list[str], dict[str, str]]:
    """List the images in a folder, sorted, and the other files with the reason why they are none."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    Image.init()
    formats = {  # without those of which Pillow knows only the header
        name: accept
        for name, (reader, accept) in Image.OPEN.items()
        if name != "MPEG" and not (isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile))
    }
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    recognized = [name for name, accept in formats.items() if accept]  # by the first bytes
    names, skipped, seen = [], {}, set()

    def skip(error: OSError) -> None:
        skipped[os.path.relpath(error.filename, folder)] = str(error.strerror)

    for place, folders, files in os.walk(folder, onerror=skip, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            skipped[os.path.relpath(place, folder)] = "the same folder as one that is read already"
            folders.clear()
            continue
        seen.add(real)
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
                except UnidentifiedImageError:
                    skipped[name] = "not an image that Pillow reads"
                    if suffix in (".heic", ".heif"):
                        skipped[name] += _HEIF
                    continue
                except (OSError, Image.DecompressionBombError) as error:
                    if isinstance(error, OSError) and error.errno is not None:  # else it is a broken image
                        skip(error)
                        continue
            names.append(name)
    return sorted(names, key=lambda name: name.split(os.sep)), dict(sorted(skipped.items()))


def read_image(file: str, mode: str, side: int | None = None) -> Any:
    """Read an image as viewers show it: turned as its EXIF data says, on white, and the first frame of an animation.

    White is the smallest depth that holds all values: 8, 12, 16 or 32 bits, or for floating point a power of two. A
    JPEG file that will be reduced to a `side` (pixels) is read with fewer pixels, which is fast.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if side is not None:
            opened.draft(mode, (side, side))
        image = ImageOps.exif_transpose(opened)
        if image.mode[0] in "IF":  # more than bytes, which Pillow would clip at 255
            values = np.asarray(image, np.float32)
            low, high = float(values.min()), float(values.max())
            if not 0 <= low <= high < np.inf:
                raise ValueError(f"pixels should be finite and not negative, found {low:g} to {high:g}")
            depths = range(129) if image.mode == "F" else (8, 12, 16, 32)
            white = next(2.0**bits for bits in depths if high <= 2.0**bits)
            image = Image.fromarray((values * (256 / white)).clip(max=255).astype(np.uint8))
        if image.mode.endswith("A") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)


def _channels_first(array: Any) -> Tensor:
    """Return an image `(C, H, W)` of an array `(H, W)` or `(H, W, C)`."""
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1).contiguous()
