"""Images that do not belong: a hundred among those that a network is trained on, and some for its probe."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recipes.common.damage import plant_damage
from recipes.common.data import mean_and_std
from recipes.experiments.common.trainings import Images, Training, prepare
from recipes.experiments.h2.planted import KINDS, Probe, damage_behind, foreign_images

__all__ = ["DAMAGED", "Planted", "plant"]

DAMAGED = 100  # training images of the condition "damaged", of all kinds in turn
_SMALLEST = 20  # ordinary images for each damaged one, where the training has few


@dataclass(frozen=True, eq=False)
class Planted:
    """What a network is trained on, and its probe.

    Attributes:
        images: The training's images, of which some are damaged in the condition "damaged" and none in others.
        damaged: Places of the damaged training images, by kind.
        probe: The first validation images, and damaged ones behind them, none of which is trained on.
        pixels: The images of the probe as they are read, uint8 `(M, C, H, W)`.
    """

    images: Images
    damaged: dict[str, list[int]]
    probe: Probe
    pixels: Tensor

    @property
    def bad(self) -> Tensor:
        """Which of the training images are damaged, bool `(M,)`."""
        bad = torch.zeros(len(self.images.data.train_images), dtype=torch.bool)
        for places in self.damaged.values():
            bad[places] = True
        return bad


def plant(training: Training, root: str | None = None) -> Planted:
    """Load the images of a training, and damage some of them.

    In a probe with several kinds of damage, the kinds come in an order that depends on the seed: where there are fewer
    damaged images than kinds, other kinds are left out with another seed.

    Args:
        training: The training.
        root: See `prepare`.

    Raises:
        FileNotFoundError: If the data are not there.
    """
    images = prepare(training, root)
    data, foreign = images.data, foreign_images(training, root)
    damaged: dict[str, list[int]] = {}
    if training.condition == "damaged":
        count = min(DAMAGED, len(data.train_images) // _SMALLEST)
        every = KINDS if foreign is None else (*KINDS, "foreign")
        train, damaged = plant_damage(data.train_images, count, every, training.seed, foreign)
        images = Images(replace(data, train_images=train), images.wrong, *mean_and_std(train))
    val, places = damage_behind(data.val_images, training, foreign, seed=training.seed + 1000)
    kinds = [*places]
    first = 3 * training.seed % len(kinds)
    places = {kind: places[kind] for kind in kinds[first:] + kinds[:first]}
    used = training.probe_size + sum(map(len, places.values()))
    normalised = replace(images, data=replace(images.data, val_images=val)).normalised("val", used)
    wrong = torch.zeros(used, dtype=torch.bool)
    probe = Probe(normalised, data.val_labels[:used], wrong, training.probe_size, places)
    return Planted(images, damaged, probe, val[:used])
