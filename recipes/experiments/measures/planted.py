"""Wrong labels and damaged images, planted at known positions among the training images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recipes.common.damage import DAMAGES, damage_in_turn, with_label_noise
from recipes.common.data import mean_and_std
from recipes.experiments.fitting import Images, prepare
from recipes.experiments.spec import Training

_SHARE = 0.05  # damaged images of each kind, as a share of a probe's size
_MISLABELLED = 0.05  # of all labels
FOREIGN = {"cifar10": "fashion_mnist", "fashion_mnist": "cifar10"}


@dataclass(frozen=True, eq=False)
class Probe:
    """The first images of a run, none of them damaged.

    Attributes:
        images: Normalised `(N, C, H, W)`.
        labels: Labels, with wrong ones `(N,)`.
        wrong: Which of the labels are wrong `(N,)`.
    """

    images: Tensor
    labels: Tensor
    wrong: Tensor


@dataclass(frozen=True, eq=False)
class Planted:
    """The images of a run and two probes.

    Attributes:
        images: The run's images with wrong labels and, optionally, damaged training images behind those of the probe.
            Validation and test images are unchanged.
        damaged: Which of the training images are damaged `(N,)`.
        train: The first training images.
        val: The first validation images.
    """

    images: Images
    damaged: Tensor
    train: Probe
    val: Probe


def plant(training: Training, root: str | None = None, *, damage: bool) -> Planted:
    """Load the images of a run, and plant wrong labels and, with `damage`, damaged training images."""
    images, size = prepare(training, root), training.probe_size
    data = images.data
    other = FOREIGN.get(training.data)
    foreign = prepare(replace(training, data=other), root).data.train_images if other else None
    count = (len(DAMAGES) + bool(other)) * max(1, round(_SHARE * size))
    behind = slice(size, size + count)
    train, damaged = data.train_images, torch.zeros_like(images.wrong)
    if damage:
        train, damaged[behind] = train.clone(), True
        train[behind] = damage_in_turn(train[behind], foreign, training.seed)

    def mislabel(labels: Tensor) -> tuple[Tensor, Tensor]:
        noisy, wrong = with_label_noise(labels, _MISLABELLED, data.n_classes, training.seed)
        noisy[behind], wrong[behind] = labels[behind], False
        return noisy, wrong

    (labels, wrong), (val_labels, val_wrong) = mislabel(data.train_labels), mislabel(data.val_labels)
    planted = Images(replace(data, train_images=train, train_labels=labels), wrong, *mean_and_std(train))
    val, _ = planted.part("val", size)
    train_probe = Probe(*planted.part("train", size), wrong[:size])
    return Planted(planted, damaged, train_probe, Probe(val, val_labels[:size], val_wrong[:size]))
