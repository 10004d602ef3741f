"""The conditions of runs, and for each experiment its networks, data sets, conditions and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Condition:
    """How a run differs from the plain one."""

    label_noise: float = 0.0  # fraction of the training labels that are wrong
    augment: bool = False  # whether training images are shifted and mirrored
    dropout: float = 0.0  # before the linear layers
    decay: float = 0.0  # fraction by which a step shrinks the weights: decoupled weight decay times the learning rate
    pool: int = 1  # factor of the number of training images; an epoch has as many steps as before
    label_smoothing: float = 0.0
    cosine: bool = False  # whether the learning rate falls to 0 along half a cosine
    pretrained: bool = False  # whether the convolutions are, on another data set
    frozen: bool = False  # whether the convolutions are


CONDITIONS = {
    "overfitting": Condition(),
    "noise10": Condition(label_noise=0.1),
    "noise30": Condition(label_noise=0.3),
    "noise20": Condition(label_noise=0.2),  # of the held-out runs only
    "augmented": Condition(augment=True, dropout=0.5),
    "regularised": Condition(dropout=0.5, decay=0.001),
    "more_data": Condition(pool=10),
    # Of `harm` only, which tests each run for overfitting.
    "plain": Condition(),
    "label_smoothing": Condition(label_smoothing=0.1),
    "cosine": Condition(cosine=True),
    "transfer": Condition(pretrained=True),
    "frozen": Condition(pretrained=True, frozen=True),
}
OVERFITTING = ("overfitting", "noise10", "noise20", "noise30")  # the others are the healthy controls
DATA = ("cifar10", "fashion_mnist")
TRAIN_SIZE = 4000  # of the short runs
TUNED_ON = (0, 2, 3)  # seeds of `output` that the default rule of early stopping was chosen on; 4 and 5 are held out
TRIED_ON = (11, 12)  # seeds of `harm` that judged a rule found on the others: to wait for the accuracy, too
# Epochs and learning rate, such that the validation loss of the plain run rises well above its minimum.
_SCHEDULE = {"lenet5": (40, 2e-3), "simple_cnn": (30, 2e-3), "alexnet": (16, 3e-4), "resnet18": (8, 1e-3),
             "vgg11_bn": (16, 5e-4), "simple_cnn_bn": (30, 2e-3), "strided_cnn_bn": (30, 2e-3),
             "resnet8": (30, 2e-3)}  # fmt: skip
NETWORKS = tuple(_SCHEDULE)
PAPERS = NETWORKS[:3]  # those of the source paper


@dataclass(frozen=True)
class Training:
    """One run, named by its `key`.

    The seed sets the split, the initial weights and the order of the images. An epoch has `train_size` images; the
    first `probe_size` validation images are the probe.
    """

    network: str
    data: str
    condition: str
    seed: int
    epochs: int
    lr: float
    train_size: int = TRAIN_SIZE
    val_size: int = 1024
    test_size: int = 2000
    batch_size: int = 64
    probe_size: int = 512

    @property
    def key(self) -> str:
        """Network, data, condition and seed, and the sizes if they differ from those of a short run."""
        sizes = "" if self.train_size == TRAIN_SIZE else f"/{self.train_size}x{self.epochs}"
        return f"{self.network}/{self.data}/{self.condition}/{self.seed}{sizes}"


def _all_images(short: Training) -> Training:
    """The paper's likely regime: all training images except the validation ones, for many epochs."""
    epochs = {"lenet5": 50, "simple_cnn": 30, "alexnet": 20}
    images = {"fashion_mnist": 60_000}.get(short.data, 50_000)
    return replace(short, train_size=images - short.val_size, epochs=epochs.get(short.network, short.epochs))


def _small(size: int) -> Callable[[Training], Training]:
    """So few images that a gap opens long before training is complete."""
    sizes: Any = {"train_size": size, "val_size": 500, "test_size": 1000, "batch_size": 32}
    return lambda short: replace(short, epochs=40, lr=1e-3, **sizes)


def _few(short: Training) -> Training:
    """As small as a run can be that learns something, with the learning rate of a short run."""
    size, epochs = {"digits": (300, 40), "fashion_mnist": (500, 30)}.get(short.data, (1000, 25))
    return replace(_small(size)(short), lr=short.lr, epochs=epochs)


@dataclass(frozen=True)
class Experiment:
    """The runs of an experiment: all combinations, seed after seed, so that the first seeds are complete first.

    `measure` is a key of `measures.MEASURES`, `sizes` modifies a short run, and `quick` names the conditions of
    `--quick`.
    """

    measure: str
    conditions: Sequence[str]
    networks: Sequence[str] = PAPERS
    data: Sequence[str] = DATA
    seeds: Sequence[int] = (0, 1, 2)
    sizes: Callable[[Training], Training] = lambda short: short
    quick: Sequence[str] = ("overfitting",)

    def trainings(self) -> list[Training]:
        """List the runs, without VGG-11 on Fashion-MNIST: its five poolings reduce 28x28 pixels to nothing."""
        return [
            self.sizes(Training(network, data, condition, seed, *_SCHEDULE[network]))
            for seed, network, data, condition in product(self.seeds, self.networks, self.data, self.conditions)
            if (network, data) != ("vgg11_bn", "fashion_mnist")
        ]

    def quick_trainings(self) -> list[Training]:
        """List quick runs that only show that an experiment works: LeNet-5 for a few epochs on a few hundred digits."""
        sizes = {"train_size": 256, "val_size": 192, "test_size": 128, "probe_size": 128}
        return [Training("lenet5", "digits", condition, 0, 4, 1e-3, **sizes) for condition in self.quick]


_ALL = ("overfitting", "noise10", "noise30", "augmented", "regularised", "more_data")
_FOLLOWED = ("overfitting", "noise30", "augmented", "more_data")  # of `two_sample`
_HELD_OUT = ("overfitting", "noise20", "augmented", "more_data")
_SMALL = ("lenet5", "strided_cnn_bn", "simple_cnn", "simple_cnn_bn")
_HARM = ("plain", "label_smoothing", "cosine", "augmented")
EXPERIMENTS = {
    "h1": Experiment("h1", _ALL),
    "h1_held_out": Experiment("h1", _HELD_OUT, ["vgg11_bn"], ["cifar10"], [3]),
    "h1_long": Experiment("h1", ("overfitting", "augmented"), seeds=(4, 5), sizes=_all_images),
    "two_sample": Experiment("two_sample", _FOLLOWED),
    "two_sample_held_out": Experiment("two_sample", _HELD_OUT, ["vgg11_bn"], ["cifar10"], [3]),
    "output": Experiment("output", _ALL, NETWORKS[:5], seeds=(0, 2, 3, 4)),
    "output_long": Experiment("output", ("overfitting", "augmented"), seeds=(4, 5), sizes=_all_images),
    "h2": Experiment("h2", ("overfitting",)),
    "h3": Experiment("h3", ("overfitting", "noise30")),
    **{
        f"harm_{size}": Experiment("harm", ("plain",), _SMALL, ("digits", "fashion_mnist"), sizes=_small(size),
                                   quick=("plain",))
        for size in (300, 500, 1000)
    },
    "harm_cifar10": Experiment(
        "harm", _HARM, _SMALL, ("cifar10",), (5, 6, 7),
        lambda short: replace(_small(2000)(short), epochs=30, batch_size=64), quick=("plain",),
    ),
    "harm_accuracy": Experiment("harm", ("overfitting", "noise20", "augmented", "regularised", "more_data"),
                                ("resnet8", "strided_cnn_bn", "lenet5"), ("digits", *DATA), TRIED_ON, _few,
                                quick=("plain",)),
    "harm_transfer": Experiment("harm", ("transfer", "frozen"), _SMALL, ("digits", *DATA), (0, 1, 2), _small(1000),
                                quick=("plain",)),
}  # fmt: skip
