"""Images on disk as the command line takes them: an .npz file, or a folder of image files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def open_images(path: Path, size: int | None, gray: bool) -> ArrayImages | FolderImages:
    """Open the images of an .npz file or a folder, whose images get a `size` (pixels), and one channel if `gray`."""
    if not path.is_dir():
        return ArrayImages(path)
    if size is None:
        raise ValueError(f"`--size` should be given for the folder `{path}`, in pixels: `--size 224`, for example.")
    return FolderImages(path, size, gray)


class ArrayImages(Dataset[Tensor]):
    """The images of an .npz file, as float32 one by one: those of a large file together take four times its memory."""

    labels: None = None

    def __init__(self, path: Path) -> None:
        self._array = _read_array(path)
        self.shape = tuple(self[0].shape)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Tensor:
        return _as_image(self._array[index])


class FolderImages(Dataset[Tensor]):
    """The images in a folder and below it, in the order of their names; a folder in it is a class.

    A `transform` makes a tensor of an image of Pillow's. Without one an image is scaled until it covers a square of
    `size` pixels a side, and its middle is taken. Attributes are those of torchvision's `ImageFolder`, and the `labels`
    by name; without a folder in it there are no classes.
    """

    def __init__(
        self,
        folder: str | Path,
        size: int = 224,
        gray: bool = False,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.root, self.transform = folder, transform
        folder = Path(folder)
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise ValueError(f"`{folder.name}` should hold images ({', '.join(sorted(_SUFFIXES))}). Found none.")
        paths = [file.relative_to(folder).parts for file in files]
        own = [parts[0] if len(parts) > 1 else "" for parts in paths]  # "" of a file beside the classes
        classes = sorted({*own})
        self.samples = [(str(file), classes.index(name)) for file, name in zip(files, own, strict=True)]
        self.labels = own if classes != [""] else None
        self.targets = [number for _, number in self.samples] if self.labels else []
        self.shape = (1 if gray else 3, size, size)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        image = _read_image(self.samples[index][0], "L" if channels == 1 else "RGB")
        if self.transform is not None:
            return self.transform(image)
        return _as_image(np.array(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)))


def probe_positions(images: ArrayImages | FolderImages, count: int) -> range:
    """Choose the first images, but of a folder some at equal distances, as its first ones would be of a few classes."""
    return range(0, len(images), -(-len(images) // count) if isinstance(images, FolderImages) else 1)[:count]


def _read_image(file: str, mode: str) -> Any:
    """Read an image as a person sees it: turned as its EXIF data says, and of an animation the first picture."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would cut all above 255
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        return image.convert(mode)


def _as_image(array: Any) -> Tensor:
    """An image as a model takes it `(C, H, W)`."""
    if array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.float32))
    tensor = torch.from_numpy(array).float() / 255
    return tensor[None] if array.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _read_array(path: Path) -> Any:
    """Read `val_images` of a file, else `test_images`, else the only array that it has."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            known = [key for key in ("val_images", "test_images") if key in names]
            key = known[0] if known else names[0] if len(names) == 1 else None
            array = None if key is None else file[key]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"`{path.name}` should be an .npz file, as `numpy.savez` writes it: {error}.") from error
    if array is None:
        raise ValueError(f"`{path.name}` should hold `val_images`, `test_images` or one array alone. Found {names}.")
    integer = array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3)))
    if not array.size or not (integer or (array.dtype.kind == "f" and array.ndim == 4)):
        raise ValueError(
            f"`{key}` in `{path.name}` should be uint8 of shape (N, H, W) or (N, H, W, 3), or floating-point of shape "
            f"(N, C, H, W), and not empty. Found {array.dtype} of shape {array.shape}."
        )
    return array
