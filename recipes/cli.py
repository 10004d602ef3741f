"""Training from a configuration file or the command line: `python recipes/cli.py fit --config recipes/config.yaml`.

LightningCLI does the work; see `python recipes/cli.py fit --help` for all that can be set.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

# A script that is run by its path finds the modules beside it, not the packages of the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lightning_anomaly import TwoSampleCallback
from recipes.common.damage import over_expose
from recipes.common.data import Loader, load_images, make_loaders, split
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import ignore_warnings, telling_errors

__all__ = ["Comparison", "ImageClassifier", "Images"]


class ImageClassifier(Classifier):
    """One of the three networks, trained with Adam.

    Args:
        network: Which network.
        channels: Channels of an image.
        classes: Number of classes.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        network: Literal["lenet5", "alexnet", "simple_cnn"] = "simple_cnn",
        channels: int = 1,
        classes: int = 10,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(build(network, channels, classes), lr, weight_decay)


class Images(LightningDataModule):
    """Images to train on and to validate on.

    Args:
        data: `digits`, which needs no download, `fashion_mnist`, `cifar10`, `cifar100`, or the path of an `.npz` file.
        data_root: Where torchvision finds or puts its data sets; None takes `data` in the working directory.
        download: Whether torchvision may download.
        train_size: Number of training images.
        val_size: Number of validation images.
        batch_size: Number of images in a batch.
        over_exposed: How many of the validation images are made four times as bright, so that there is something to
            find.
        seed: Which images are taken.
    """

    def __init__(
        self,
        data: str = "digits",
        data_root: str | None = None,
        download: bool = False,
        train_size: int = 200,
        val_size: int = 512,
        batch_size: int = 32,
        over_exposed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        images = load_images(data, data_root=data_root, download=download)
        images = split(images, train_size, val_size, seed)
        self._train, self._val = make_loaders(images, batch_size)
        over_expose(self._val, images, slice(over_exposed))

    def train_dataloader(self) -> Loader:
        """The training images, shuffled."""
        return self._train

    def val_dataloader(self) -> Loader:
        """The validation images in a fixed order, as the probe needs it."""
        return self._val


class Comparison(TwoSampleCallback):
    """`TwoSampleCallback` for a configuration file, which cannot hold tensors: it loads the images of `Images`.

    Args:
        options: Those of `Images`.
    """

    def __init__(self, **options: Any) -> None:
        images = Images(**options)
        training, validation = images.train_dataloader(), images.val_dataloader()
        super().__init__(training.dataset[:1024][0], validation.dataset[:1024][0])


def main() -> None:
    """Do what the command line says."""
    ignore_warnings()
    with telling_errors():
        LightningCLI(ImageClassifier, Images, seed_everything_default=0)


if __name__ == "__main__":
    main()
