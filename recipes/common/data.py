"""Images for the recipes: read, split and put into loaders.

Functions on tensors that change nothing they are given. What is random takes a seed and draws from a generator of its
own, except for `crop_and_flip`. Axes: `N` images, `C` channels, `H W` pixels; images are uint8 until `normalise`.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, default_collate
from torchvision import datasets

_TORCHVISION = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
DATA_SETS = ("digits", *_TORCHVISION)
_REQUIRED = {"train_images", "train_labels", "test_images", "test_labels"}


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images uint8 `(N, C, H, W)` and labels int64 `(N,)`; the validation part may be empty until `split` fills it."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


def load_images(data: str | Path, *, data_root: str | Path | None = None, download: bool = False) -> ImageData:
    """Load a data set by its name, or from an `.npz` file in MedMNIST's layout.

    Such a file holds `train_images` and `test_images`, uint8 `(N, H, W)` or `(N, H, W, 3)`, `train_labels` and
    `test_labels`, integers `(N,)` or `(N, 1)`, and may hold `val_images`, `val_labels` and `classes`, their names.

    Args:
        data: One of `DATA_SETS`, or the path of an `.npz` file.
        data_root: Folder in which torchvision looks for its data sets, by default `data` in the working directory.
        download: Let torchvision download what `data_root` lacks.

    Raises:
        FileNotFoundError: If the file or the data set does not exist.
        ConnectionError: If the download fails.
        ValueError: If `data` is neither a name nor an `.npz` path, or if the file holds something else.
    """
    if data == "digits":
        return _assemble(_digits(), "digits")
    if data in _TORCHVISION:
        return _assemble(_torchvision(str(data), Path(data_root or "data").expanduser(), download), str(data))
    path = Path(data).expanduser()
    if path.suffix != ".npz":
        names = ", ".join(DATA_SETS)
        raise ValueError(f"Parameter `data` should be one of {names} or the path of an .npz file. Found `{data = !s}`.")
    if not path.is_file():
        raise FileNotFoundError(f"Parameter `data` should be the path of an existing .npz file. Found `{data = !s}`.")
    return _assemble(_npz(path), path.name)


def _digits() -> dict[str, Any]:
    """scikit-learn's 8x8 digits, pixels repeated 2x2 because the networks need 16x16: 1,500 to train, 297 to test."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    order = torch.randperm(len(images), generator=_generator(0)).numpy()
    parts = {"train": order[:1500], "test": order[1500:]}
    arrays = {f"{part}_images": images[chosen] for part, chosen in parts.items()}
    arrays |= {f"{part}_labels": digits.target[chosen] for part, chosen in parts.items()}
    return arrays | {"classes": digits.target_names}


def _torchvision(name: str, root: Path, download: bool) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    try:
        for part in ("train", "test"):
            dataset = _TORCHVISION[name](root, train=part == "train", download=download)
            arrays |= {f"{part}_images": dataset.data, f"{part}_labels": dataset.targets, "classes": dataset.classes}
    except (RuntimeError, OSError) as error:
        if download:
            raise ConnectionError(f"The download of {name} to the folder `{root}` failed: {error}") from error
        raise FileNotFoundError(
            f"The folder `{root}` does not hold an intact copy of {name} as torchvision stores it: "
            "pass `--download` to download it, or `--data-root` to name the folder that holds it."
        ) from error
    return arrays


def _npz(path: Path) -> dict[str, Any]:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is not an archive.")
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            arrays = {key: file[key] for key in keys & (_REQUIRED | {"val_images", "val_labels", "classes"})}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`{path.name}` should be an .npz archive of plain arrays. Reading failed: {error}") from error
    required = _REQUIRED | ({"val_images", "val_labels"} if keys & {"val_images", "val_labels"} else set())
    if missing := required - keys:
        expected, found = (", ".join(sorted(names)) for names in (missing, keys))
        raise ValueError(f"`{path.name}` should hold the keys {expected} too. Found the keys {found}.")
    return arrays


def _assemble(arrays: dict[str, Any], source: str) -> ImageData:
    """Check arrays in MedMNIST's layout and turn them into tensors; `source` names them in errors."""
    tensors: dict[str, Tensor] = {}
    for part in ("train", "test", "val"):
        images, labels = f"{part}_images", f"{part}_labels"
        if images not in arrays:  # only the validation part may be missing
            tensors |= {images: tensors["train_images"][:0], labels: tensors["train_labels"][:0]}
            continue
        tensors[images] = _images(np.asarray(arrays[images]), f"`{images}` in `{source}`")
        tensors[labels] = _labels(np.asarray(arrays[labels]), f"`{labels}` in `{source}`")
        if len(tensors[images]) != len(tensors[labels]):
            raise ValueError(
                f"`{labels}` in `{source}` should hold one label per image. "
                f"Found {len(tensors[labels])} labels and {len(tensors[images])} images."
            )
        found, expected = (tuple(tensors[key].shape[1:]) for key in (images, "train_images"))
        if found != expected:
            raise ValueError(f"`{images}` in `{source}` should be {expected} like the training images. Found {found}.")
    highest = max(int(tensors[key].max()) for key in tensors if key.endswith("labels") and len(tensors[key]))
    classes = np.asarray(arrays.get("classes", range(highest + 1)))
    if classes.ndim != 1 or len(classes) <= highest:
        raise ValueError(
            f"`classes` in `{source}` should be a list of {highest + 1} names or more, as labels go up to {highest}. "
            f"Found shape {classes.shape}."
        )
    return ImageData(**tensors, classes=tuple(str(name) for name in classes))


def _images(array: Any, what: str) -> Tensor:
    grey, colour = array.ndim == 3, array.ndim == 4 and array.shape[-1] == 3
    if array.dtype != np.uint8 or not (grey or colour) or array.size == 0:
        raise ValueError(
            f"{what} should be uint8 of shape (N, H, W) or (N, H, W, 3) and not empty. "
            f"Found {array.dtype} of shape {array.shape}."
        )
    images = torch.from_numpy(array)
    return images[:, None] if grey else images.permute(0, 3, 1, 2).contiguous()


def _labels(array: Any, what: str) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim == 0 or array.shape[1:] not in ((), (1,)):
        raise ValueError(
            f"{what} should be integers of shape (N,) or (N, 1). Found {array.dtype} of shape {array.shape}."
        )
    labels = torch.from_numpy(array.reshape(-1).astype(np.int64))
    if (labels < 0).any():
        raise ValueError(f"{what} should be 0 or more. Found {int(labels.min())}.")
    return labels


def _generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def split(data: ImageData, train_size: int | None, val_size: int, seed: int) -> ImageData:
    """Draw `train_size` training images (None: all that remain) and `val_size` validation images at random.

    Both come from the training part. The validation images depend on the seed but not on `train_size`, so that runs of
    several sizes are judged on the same ones. Data with a validation part keeps it, at random `val_size` images of it
    where it is larger.

    Raises:
        ValueError: If a size is below 1 or there are too few images.
    """
    if val_size < 1:
        raise ValueError(f"Parameter `val_size` should be a positive integer. Found `{val_size = }`.")
    generator = _generator(seed)
    train = torch.randperm(len(data.train_labels), generator=generator)
    if len(data.val_labels):
        val = torch.randperm(len(data.val_labels), generator=generator)[:val_size]
        val_images, val_labels = data.val_images[val], data.val_labels[val]
    else:
        val, train = train[:val_size], train[val_size:]
        val_images, val_labels = data.train_images[val], data.train_labels[val]
    size = len(train) if train_size is None else train_size
    if not 1 <= size <= len(train):
        raise ValueError(
            f"Parameter `train_size` should be between 1 and {len(train)}, the images that `{val_size = }` leaves of "
            f"{len(data.train_labels)}. Found `{train_size = }`."
        )
    return replace(
        data,
        train_images=data.train_images[train[:size]],
        train_labels=data.train_labels[train[:size]],
        val_images=val_images,
        val_labels=val_labels,
    )


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, `(C,)`, of images uint8 `(N, C, H, W)` read as 0 to 1."""
    std, mean = torch.std_mean(images.float().div_(255), dim=(0, 2, 3), correction=0)
    return mean, std.clamp_min(1 / 255)  # a constant channel must not divide by zero


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Read images uint8 `(N, C, H, W)` as 0 to 1, subtract `mean` `(C,)` and divide by `std` `(C,)`, in float32."""
    scaled = images.to(torch.float32, copy=True).div_(255)
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])


def crop_and_flip(images: Tensor) -> Tensor:
    """Shift each image of a batch `(N, C, H, W)` by up to 4 pixels either way, and mirror it with probability 1/2.

    Draws from torch's global generator, as training does. The pixels at the border are repeated outwards, because the
    usual zeros are not black in normalised images.
    """
    n, channels, height, width = images.shape
    rows = torch.randint(0, 9, (n, 1)) + torch.arange(height)
    columns = torch.randint(0, 9, (n, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    return F.pad(images, (4, 4, 4, 4), mode="replicate")[image, channel, rows[:, None, :, None], columns[:, None, None]]


def _augmented_batch(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(samples)
    return crop_and_flip(images), labels


def to_dataset(images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> TensorDataset:
    """Pair the normalised images with their labels `(N,)`; the other arguments are those of `normalise`."""
    return TensorDataset(normalise(images, mean, std), labels)


Loader = DataLoader[tuple[Tensor, ...]]


def make_loaders(
    data: ImageData, batch_size: int, augment: bool = False, epoch_size: int | None = None
) -> tuple[Loader, Loader]:
    """Loaders of the training part, shuffled, and the validation part, in order, both normalised by the training part.

    Args:
        data: The images.
        batch_size: Images in a batch.
        augment: Whether training batches go through `crop_and_flip`; the dataset itself yields the images unchanged.
        epoch_size: Training images in an epoch; of fewer images, some come again. None takes each of them once.
    """
    mean, std = mean_and_std(data.train_images)
    train = to_dataset(data.train_images, data.train_labels, mean, std)
    val = to_dataset(data.val_images, data.val_labels, mean, std)
    collate = _augmented_batch if augment else None
    order = RandomSampler(train, num_samples=epoch_size)
    return DataLoader(train, batch_size, sampler=order, collate_fn=collate), DataLoader(val, batch_size)
