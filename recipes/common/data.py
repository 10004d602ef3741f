"""Read images, split them, and put them into loaders.

Functions on tensors, which do not change their arguments. Random ones take a seed and a new generator, except for
`crop_and_flip`. Axes: `N` images, `C` channels, `H W` pixels; images are uint8 until `normalize`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, default_collate
from torchvision import datasets

_TORCHVISION = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
DATA_SETS = ("digits", *_TORCHVISION)
OTHER_DATA = dict.fromkeys(DATA_SETS, "fashion_mnist") | {"fashion_mnist": "cifar10"}
Loader = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images uint8 `(N, C, H, W)` and labels int64 `(N,)`; the validation part is empty until `split` fills it."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    n_classes: int

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]


def load_images(name: str, root: str | None = None) -> ImageData:
    """Load a data set.

    Args:
        name: One of `DATA_SETS`.
        root: Folder that holds `NAME.npz` with `train_images`, uint8 `(N, H, W)` or `(N, H, W, 3)`, `train_labels`,
            `test_images` and `test_labels`, or else torchvision's copy; by default `data` in the working directory.

    Raises:
        FileNotFoundError: If the folder holds neither.
    """
    folder, archive = _places(name, root)
    if name == "digits":
        parts = _digits()
    elif archive.is_file():
        with np.load(archive, allow_pickle=False) as file:
            parts = [(file[f"{part}_images"], file[f"{part}_labels"]) for part in ("train", "test")]
    else:
        try:
            sets = [_TORCHVISION[name](folder, train=train) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"The folder `{folder}` should hold `{name}.npz` or an intact copy of {name} as torchvision stores it "
                f"(`--data-root` names another folder, `--download` fetches it). Found neither: {error}"
            ) from error
        parts = [(np.asarray(part.data), np.asarray(part.targets)) for part in sets]
    (images, labels), test = (_tensors(*part) for part in parts)
    return ImageData(images, labels, images[:0], labels[:0], *test, int(max(labels.max(), test[1].max())) + 1)


def download(names: Iterable[str], root: str | None = None) -> None:
    """Let torchvision fetch the data sets that a folder lacks, see `load_images`; raise an OSError if it cannot."""
    for name in names:
        folder, archive = _places(name, root)
        if name in _TORCHVISION and not archive.is_file():
            try:
                for train in (True, False):
                    _TORCHVISION[name](folder, train=train, download=True)
            except (RuntimeError, OSError) as error:
                raise OSError(f"torchvision could not fetch {name} to `{folder}`: {error}") from error


def _places(name: str, root: str | None) -> tuple[Path, Path]:
    """Return the folder of the data, and the archive of a data set in it."""
    folder = Path(root or "data").expanduser()
    return folder, folder / f"{name}.npz"


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _digits() -> list[tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits, enlarged from 8x8 to 16x16 because the networks need it: 1,500 to train, 297 to test."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).numpy()
    return [(images[chosen], digits.target[chosen]) for chosen in (order[:1500], order[1500:])]


def split(data: ImageData, train_size: int, val_size: int, seed: int) -> ImageData:
    """Draw `val_size` validation images and up to `train_size` training images at random, both from the training part.

    The validation images depend on the seed but not on `train_size`, so that runs of all sizes have the same ones.
    """
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    val, train = order[:val_size], order[val_size : val_size + train_size]
    return replace(
        data,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        val_images=data.train_images[val],
        val_labels=data.train_labels[val],
    )


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation `(C,)` of each channel of images uint8 `(N, C, H, W)`, scaled to [0, 1]."""
    std, mean = torch.std_mean(images.float().div_(255), dim=(0, 2, 3), correction=0)
    return mean, std.clamp_min(1 / 255)  # a constant channel must not divide by zero


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale images `(N, C, H, W)` from [0, 255] to [0, 1], subtract `mean` `(C,)`, divide by `std` `(C,)`: float32."""
    scaled = images.to(torch.float32, copy=True).div_(255)
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])


def crop_and_flip(images: Tensor) -> Tensor:
    """Shift each image of a batch `(N, C, H, W)` by up to 4 pixels on each axis, and mirror it with probability 1/2.

    Draws from torch's global generator, as training does. Images are padded by their border pixels, because zeros are
    not black in normalized images.
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


def make_loaders(
    data: ImageData, batch_size: int, augment: bool = False, epoch_size: int | None = None
) -> tuple[Loader, Loader]:
    """Make a shuffled loader of training images and an ordered one of validation images, normalized by the former.

    With `augment`, `crop_and_flip` augments training batches. If `epoch_size` is larger than the number of training
    images, some are repeated; None takes each image once.
    """
    scale = mean_and_std(data.train_images)
    train = TensorDataset(normalize(data.train_images, *scale), data.train_labels)
    val = TensorDataset(normalize(data.val_images, *scale), data.val_labels)
    order = RandomSampler(train, num_samples=epoch_size)
    collate = _augmented_batch if augment else None
    return DataLoader(train, batch_size, sampler=order, collate_fn=collate), DataLoader(val, batch_size)
