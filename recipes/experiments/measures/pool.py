"""Images to plant damaged ones among, for what finds those that do not belong.

Images are damaged in 34 ways, see `recipes.common.damage`. They take the place of some of 512 validation images, one
kind at a time; with the condition "damaged" some of all kinds are among the training images instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.common.damage import damage_all
from recipes.common.data import load_images, mean_and_std, normalise
from recipes.experiments.fitting import Images, prepare, trained
from recipes.experiments.measures.planted import FOREIGN
from recipes.experiments.measures.scores import auroc
from recipes.experiments.spec import Training

DRAWS = {0.002: 1, 0.01: 2, 0.05: 1}  # share of the probe's images, and probes for each kind of damage
_DAMAGED, _TRAINED_ON = 48, 2  # images of each kind to plant in probes, and for the network to be trained on
_TRAINED_SHARE = 0.01
Scores = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Pool:
    """Images to make probes of, and a network.

    Attributes:
        network: The network, in evaluation mode.
        images: Validation images, and behind them damaged ones by kind, uint8 `(N, C, H, W)`.
        inputs: The same as the network takes them.
        clean: Number of the validation images.
        damaged: Places of the damaged images by kind.
        reference: Training images as they are, undamaged, and as the network takes them, and their labels.
        trained_on: Images and inputs that the network was trained on, and their labels.
        planted: Places of the damaged ones among these by kind; empty where none is.
        probe_size: Images in a probe.
        seed: Seed of the draws.
    """

    network: nn.Sequential
    images: Tensor
    inputs: Tensor
    clean: int
    damaged: dict[str, list[int]]
    reference: tuple[Tensor, Tensor, Tensor]
    trained_on: tuple[Tensor, Tensor, Tensor]
    planted: dict[str, list[int]]
    probe_size: int
    seed: int

    def probes(self) -> Iterator[tuple[str, float, Tensor, Tensor]]:
        """Kind and share of damage, places of a probe's images `(n,)`, and which are damaged, bool `(n,)`."""
        generator = torch.Generator().manual_seed(self.seed)
        for kind, places in self.damaged.items():
            for share, draws in DRAWS.items():
                count = max(1, round(share * self.probe_size))
                for _ in range(draws):
                    chosen = torch.tensor(places)[torch.randperm(len(places), generator=generator)[:count]]
                    others = torch.randperm(self.clean, generator=generator)[: self.probe_size - count]
                    yield kind, share, torch.cat([others, chosen]), torch.arange(self.probe_size) >= len(others)

    def by_kind(self, scores: Scores) -> dict[str, dict[str, float]]:
        """AUROC of every score for all damaged images of each kind among the validation images."""
        truth = torch.arange(self.clean + _DAMAGED) >= self.clean
        return {
            kind: {name: auroc(truth, torch.cat([own[: self.clean], own[places]])) for name, own in scores.items()}
            for kind, places in self.damaged.items()
        }

    def among_trained(self, scores: Scores) -> dict[str, dict[str, float]]:
        """AUROC of every score for the damaged images of each kind that were trained on, among the others."""
        bad = torch.zeros(len(self.trained_on[0]), dtype=torch.bool)
        bad[[place for places in self.planted.values() for place in places]] = True
        found: dict[str, dict[str, float]] = {}
        for kind, places in self.planted.items():
            truth = torch.zeros_like(bad)
            truth[places] = True
            kept = truth | ~bad
            found[kind] = {name: auroc(truth[kept], own[kept]) for name, own in scores.items()}
        return found


def _damaged(training: Training, images: Images, root: str | None, weights: str | None) -> dict[str, Tensor]:
    """Damaged test images by kind, which are kept in the folder `weights` and the same for all runs on this data."""
    path = Path(weights or ".") / f"damaged-{training.data}.npz"
    if weights is not None and path.is_file():
        with np.load(path) as file:
            return {kind: torch.from_numpy(file[kind]) for kind in file.files}
    foreign = {"digits": load_images("digits").train_images}
    if training.data in FOREIGN:
        foreign["other_data"] = load_images(FOREIGN[training.data], root).train_images
    found = damage_all(images.data.test_images[: _DAMAGED + _TRAINED_ON], foreign, seed=0)
    if weights is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {kind: own.numpy() for kind, own in found.items()}
        np.savez_compressed(path, **arrays)
    return found


def _with_damage(images: Images, damaged: Mapping[str, Tensor]) -> tuple[Images, dict[str, list[int]]]:
    """Replace a share of the training images, the last ones, by damaged ones of all kinds in turn."""
    data = images.data
    count = round(_TRAINED_SHARE * len(data.train_images))
    turns = [(kind, number) for number in range(_TRAINED_ON) for kind in damaged][:count]
    train, labels = data.train_images.clone(), data.train_labels.clone()
    places: dict[str, list[int]] = {}
    for place, (kind, number) in enumerate(turns, len(train) - len(turns)):
        train[place] = damaged[kind][_DAMAGED + number]
        labels[place] = data.test_labels[_DAMAGED + number]
        places.setdefault(kind, []).append(place)
    return Images(replace(data, train_images=train, train_labels=labels), images.wrong, *mean_and_std(train)), places


def make_pool(training: Training, root: str | None, weights: str | None) -> Pool:
    """Load and damage the images of a run, and train its network."""
    plain = prepare(training, root)
    damaged = _damaged(training, plain, root, weights)
    images, planted = _with_damage(plain, damaged) if training.condition == "damaged" else (plain, {})
    network = trained(training, images, weights)

    def inputs(own: Tensor) -> Tensor:
        return normalise(own, images.mean, images.std)

    val, train = plain.data.val_images, plain.data.train_images
    every = torch.cat([val, *(own[:_DAMAGED] for own in damaged.values())])
    starts = range(len(val), len(every), _DAMAGED)
    places = {kind: [*range(start, start + _DAMAGED)] for kind, start in zip(damaged, starts, strict=True)}
    seen = images.data.train_images
    return Pool(
        network,
        every,
        inputs(every),
        len(val),
        places,
        (train, inputs(train), plain.data.train_labels),
        (seen, inputs(seen), images.data.train_labels),
        planted,
        training.probe_size,
        training.seed,
    )


def append_found(cells: dict[str, Any], kind: str, share: float, found: Mapping[str, Any]) -> None:
    """Append what was found in a probe to the lists of its kind and share."""
    for name, value in found.items():
        cells.setdefault(kind, {}).setdefault(str(share), {}).setdefault(name, []).append(value)
