"""Images that do not belong, planted among those that do: wrong labels, and damage of every kind in known places."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recipes.common.damage import plant_damage, with_label_noise
from recipes.common.data import mean_and_std
from recipes.experiments.fitting import Images, prepare
from recipes.experiments.spec import Training

__all__ = ["KINDS", "Planted", "Probe", "damage_behind", "foreign_images", "plant"]

SHARES = (0.002, 0.01, 0.05)  # of the probe's images, of one kind at a time
MISLABELLED = 0.05  # of all labels
KINDS = ("noise", "salt_and_pepper", "black", "over_exposed", "blurred", "inverted")
_FOREIGN = {"cifar10": "fashion_mnist", "cifar100": "fashion_mnist", "fashion_mnist": "cifar10"}


@dataclass(frozen=True, eq=False)
class Probe:
    """`N` images without damage, and behind them the damaged ones that can take the place of the last of these.

    Attributes:
        images: All of them, normalised `(M, C, H, W)`.
        labels: As they are given, wrong ones included `(M,)`.
        wrong: Which of the labels are wrong `(M,)`; none of the damaged images has a wrong one.
        size: N.
        damaged: Places of the damaged images, by kind of damage.
    """

    images: Tensor
    labels: Tensor
    wrong: Tensor
    size: int
    damaged: dict[str, list[int]]

    @property
    def clean(self) -> Tensor:
        """The places of the images without damage `(N,)`."""
        return torch.arange(self.size)

    @property
    def cases(self) -> list[tuple[str, float]]:
        """The kinds and shares of damage that can be put into the probe, all kinds "mixed" where there is room."""
        pairs = [(kind, share) for kind in [*self.damaged, "mixed"] for share in SHARES]
        return [(kind, share) for kind, share in pairs if kind != "mixed" or self.damaged_count(share) > 1]

    def with_damage(self, kind: str, share: float) -> Tensor:
        """Places `(N,)` of a probe of which a share, the last ones and at least one, is damaged."""
        count = self.damaged_count(share)
        mixed = [place for places in zip(*self.damaged.values(), strict=True) for place in places]
        places = (mixed if kind == "mixed" else self.damaged[kind])[:count]
        return torch.cat([torch.arange(self.size - count), torch.tensor(places)])

    def damaged_count(self, share: float) -> int:
        """How many images a share of the probe is, at least one."""
        return max(1, round(share * self.size))


@dataclass(frozen=True, eq=False)
class Planted:
    """What a network is trained on, and the two probes.

    Attributes:
        images: The run's images with wrong labels and, if so, damaged images among those it trains on. The validation
            and the test images are as they were.
        train: The first training images, with the same damaged ones that the network is trained on, if any.
        val: The first validation images, and damaged ones; the network never sees them.
    """

    images: Images
    train: Probe
    val: Probe


def plant(training: Training, root: str | None = None, *, damage: bool) -> Planted:
    """Load the images of a run and plant mislabelled and damaged ones.

    Each kind of damage gets as many images as the largest of `SHARES` is of a probe. They lie behind the probe's own,
    so that one kind of damage at a time can be put into the probe although the network was trained on all.

    Args:
        training: The run.
        root: See `prepare`.
        damage: Whether training images are damaged too.
    """
    images, size, foreign = prepare(training, root), training.probe_size, foreign_images(training, root)
    data = images.data
    # Other draws than those of the training images.
    val, val_places = damage_behind(data.val_images, training, foreign, seed=training.seed + 1000)
    train, places = damage_behind(data.train_images, training, foreign, seed=training.seed)
    if not damage:
        train, places = data.train_images, {}
    behind = slice(size, size + sum(map(len, val_places.values())))

    def mislabel(labels: Tensor) -> tuple[Tensor, Tensor]:
        noisy, wrong = with_label_noise(labels, MISLABELLED, data.n_classes, training.seed)
        noisy[behind], wrong[behind] = labels[behind], False
        return noisy, wrong

    (labels, wrong), (val_labels, val_wrong) = mislabel(data.train_labels), mislabel(data.val_labels)
    planted = Images(replace(data, train_images=train, train_labels=labels), wrong, *mean_and_std(train))
    normalised = replace(planted, data=replace(planted.data, val_images=val)).normalised("val")
    in_train, in_val = slice(behind.stop if damage else size), slice(behind.stop)
    return Planted(
        planted,
        Probe(planted.normalised("train")[in_train], labels[in_train], wrong[in_train], size, places),
        Probe(normalised[in_val], val_labels[in_val], val_wrong[in_val], size, val_places),
    )


def foreign_images(training: Training, root: str | None) -> Tensor | None:
    """Images of another data set; None where there is no other, of the digits."""
    if training.data not in _FOREIGN:
        return None
    return prepare(replace(training, data=_FOREIGN[training.data]), root).data.train_images


def damage_behind(
    images: Tensor, training: Training, foreign: Tensor | None, seed: int
) -> tuple[Tensor, dict[str, list[int]]]:
    """Damage images behind the first `probe_size` ones; returns all, and the damaged places by kind."""
    kinds = KINDS if foreign is None else (*KINDS, "foreign")
    count = len(kinds) * max(1, round(max(SHARES) * training.probe_size))
    behind = slice(training.probe_size, training.probe_size + count)
    damaged, places = plant_damage(images[behind], count, kinds, seed, foreign)
    result = images.clone()
    result[behind] = damaged
    return result, {kind: [training.probe_size + place for place in found] for kind, found in places.items()}
