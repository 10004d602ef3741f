"""What is trained: networks, data sets, conditions and seeds, and the images that each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from recipes.common.damage import with_label_noise
from recipes.common.data import ImageData, Loader, load_images, make_loaders, mean_and_std, normalise, split

__all__ = [
    "CONDITIONS",
    "DATA",
    "FOLLOWED",
    "MATRIX",
    "NETWORKS",
    "OVERFITTING",
    "PAPERS",
    "TOO_SMALL",
    "Condition",
    "Images",
    "Training",
    "full_matrix",
    "held_out_matrix",
    "long_matrix",
    "prepare",
    "quick_matrix",
]

DATA = ("cifar10", "fashion_mnist")
TOO_SMALL = ("vgg11_bn", "fashion_mnist")  # five poolings leave nothing of 28x28 pixels


@dataclass(frozen=True)
class Condition:
    """How a training differs from the plain one.

    Args:
        label_noise: Fraction of the training labels that are wrong.
        augment: Whether training images are shifted and mirrored.
        dropout: Probability of dropout before the linear layers.
        decay: Fraction that each step takes off the weights: decoupled weight decay times the learning rate.
        pool: Times as many training images; an epoch still takes as many steps, on other images each time.
    """

    label_noise: float = 0.0
    augment: bool = False
    dropout: float = 0.0
    decay: float = 0.0
    pool: int = 1


CONDITIONS = {
    "overfitting": Condition(),
    "noise10": Condition(label_noise=0.1),
    "noise30": Condition(label_noise=0.3),
    "noise20": Condition(label_noise=0.2),  # of the held-out runs only
    "augmented": Condition(augment=True, dropout=0.5),
    "regularised": Condition(dropout=0.5, decay=0.001),
    "more_data": Condition(pool=10),
    "damaged": Condition(),  # of `outliers` only: some of the training images do not belong
}
OVERFITTING = ("overfitting", "noise10", "noise20", "noise30", "damaged")  # the others are the healthy controls
MATRIX = ("overfitting", "noise10", "noise30", "augmented", "regularised", "more_data")
FOLLOWED = ("overfitting", "noise30", "augmented", "more_data")  # where every epoch's network is taken apart again
# Epochs and learning rate: long enough for the validation loss of the plain training to rise well above its minimum.
_SCHEDULE = {"lenet5": (40, 2e-3), "simple_cnn": (30, 2e-3), "alexnet": (16, 3e-4), "resnet18": (8, 1e-3),
             "vgg11_bn": (16, 5e-4)}  # fmt: skip
NETWORKS = tuple(_SCHEDULE)
PAPERS = NETWORKS[:3]  # those of the source paper
_LONG = {"lenet5": 50, "simple_cnn": 30, "alexnet": 20}  # epochs over a full data set


@dataclass(frozen=True)
class Training:
    """One training. `key` names it; two runs of the same one are the same run.

    Args:
        network: A name that `recipes.common.networks.build` takes.
        data: A data set's name.
        condition: A key of `CONDITIONS`.
        seed: Of the split, the initial weights and the order of the images.
        train_size: Training images in an epoch.
        val_size: Validation images, of which the first `probe_size` are the probe.
        test_size: Test images.
        epochs: Epochs.
        batch_size: Images in a step.
        lr: Learning rate of Adam.
        probe_size: Images in a probe.
    """

    network: str
    data: str
    condition: str
    seed: int
    epochs: int
    lr: float
    train_size: int = 4000
    val_size: int = 1024
    test_size: int = 2000
    batch_size: int = 64
    probe_size: int = 512

    @property
    def key(self) -> str:
        """Network, data, condition and seed, and the sizes where they are not the full matrix's."""
        sizes = "" if self.train_size == 4000 else f"/{self.train_size}x{self.epochs}"
        return f"{self.network}/{self.data}/{self.condition}/{self.seed}{sizes}"


def make_training(network: str, data: str, condition: str, seed: int) -> Training:
    """A training of the full matrix."""
    epochs, lr = _SCHEDULE[network]
    return Training(network, data, condition, seed, epochs, lr)


def full_matrix(
    networks: Sequence[str] = PAPERS,
    data: Sequence[str] = DATA,
    conditions: Sequence[str] = MATRIX,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Training]:
    """All combinations, one seed after the other, so that an unfinished matrix is whole in what it has."""
    return [
        make_training(network, name, condition, seed)
        for seed in seeds
        for network in networks
        for name in data
        for condition in conditions
        if (network, name) != TOO_SMALL
    ]


def held_out_matrix() -> list[Training]:
    """What has no part in choosing a signal: another network, another share of wrong labels, another seed."""
    return full_matrix(["vgg11_bn"], ["cifar10"], ["overfitting", "noise20", "augmented", "more_data"], [3])


def long_matrix() -> list[Training]:
    """The paper's likely regime: all training images but the validation ones, for many epochs, seed by seed."""
    orders = ((seed, condition) for seed in (4, 5) for condition in ("overfitting", "augmented"))
    short = [training for seed, condition in orders for training in full_matrix(list(_LONG), DATA, [condition], [seed])]
    sizes = {"cifar10": 48_976, "fashion_mnist": 58_976}  # of 50,000 and 60,000, less the validation images
    return [replace(plain, train_size=sizes[plain.data], epochs=_LONG[plain.network]) for plain in short]


def quick_matrix(conditions: Sequence[str] = ("overfitting", "augmented")) -> list[Training]:
    """LeNet-5 for a few epochs on a few hundred digits, once for each condition; it proves nothing."""
    plain = Training("lenet5", "digits", "", 0, 4, 1e-3, train_size=256, val_size=192, test_size=128, probe_size=128)
    return [replace(plain, condition=condition) for condition in conditions]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a training.

    Attributes:
        data: Images and labels as the network gets to see them, wrong labels included.
        wrong: Which training labels are wrong `(N,)`.
        mean: Of the training images, by channel `(C,)`.
        std: Likewise.
    """

    data: ImageData
    wrong: Tensor
    mean: Tensor
    std: Tensor

    def normalised(self, part: str, count: int | None = None) -> Tensor:
        """The first `count` images of the part "train", "val" or "test", float32; None takes all."""
        return normalise(getattr(self.data, f"{part}_images")[:count], self.mean, self.std)

    def loaders(self, training: Training) -> tuple[Loader, Loader]:
        """Training and validation loader; of fewer training images than an epoch has, some come again."""
        epoch_size = max(training.train_size, len(self.data.train_labels))
        return make_loaders(self.data, training.batch_size, CONDITIONS[training.condition].augment, epoch_size)


def _load(name: str, root: str | None) -> ImageData:
    """`root/NAME.npz` if it exists, else torchvision's copy in `root`."""
    archive = Path(root or "data") / f"{name}.npz"
    return load_images(archive if archive.is_file() else name, data_root=root)


def prepare(training: Training, root: str | None = None) -> Images:
    """Load, split and mislabel the images of a training.

    The validation and test images of a seed are the same in every condition, and the plain training's images are the
    first of those of a larger pool.

    Args:
        training: The training.
        root: Folder that holds `NAME.npz` in MedMNIST's layout, or torchvision's copy; the digits need none.

    Raises:
        FileNotFoundError: If the data are in neither form there.
        ValueError: If the data set is too small.
    """
    condition = CONDITIONS[training.condition]
    data = _load(training.data, root)
    available = len(data.train_labels) - (0 if len(data.val_labels) else training.val_size)
    size = min(training.train_size * condition.pool, available)
    data = split(data, size, training.val_size, training.seed)
    labels, wrong = with_label_noise(data.train_labels, condition.label_noise, data.n_classes, training.seed)
    data = replace(
        data,
        train_labels=labels,
        test_images=data.test_images[: training.test_size],
        test_labels=data.test_labels[: training.test_size],
    )
    return Images(data, wrong, *mean_and_std(data.train_images))
