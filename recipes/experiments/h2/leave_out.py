"""H2, second kind of run: what a network gains when the outlier samples of its training set are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from recipes.common.data import mean_and_std
from recipes.common.evaluation import evaluate
from recipes.common.maps import capture
from recipes.experiments.common.fitting import fit
from recipes.experiments.common.trainings import Images, Training
from recipes.experiments.h2.detection import SCORES
from recipes.experiments.h2.measure import (
    READINGS,
    Margins,
    analyze_places,
    measure_probe,
    reference_features,
)
from recipes.experiments.h2.planted import Planted, plant
from recipes.experiments.h2.ratios import vote_count

__all__ = ["leave_out", "training_outliers"]

_RANDOM_DRAWS = 2  # trainings without as many random samples
_ORDER = 2000  # the seed of the training images' order in probes, one that nothing else has
_FEWEST = 20  # outlier samples to leave out, 0.5% of a full run: what fewer do is lost between two random draws


class History(pl.Callback):
    """Validation loss, test loss and test accuracy of every epoch."""

    def __init__(self, images: Images) -> None:
        self.test = images.normalised("test"), images.data.test_labels
        self.epochs: list[tuple[float, float, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the epoch."""
        self.epochs.append((trainer.callback_metrics["val_loss"].item(), *evaluate(pl_module, *self.test)))

    def summary(self) -> dict[str, float]:
        """The epoch with the smallest validation loss, and the last one."""
        losses = [val_loss for val_loss, _, _ in self.epochs]
        best = losses.index(min(losses))
        found: dict[str, float] = {"best_epoch": best + 1}
        for name, place in (("best", best), ("last", -1)):
            found |= {f"{name}_loss": self.epochs[place][1], f"{name}_acc": self.epochs[place][2]}
        return found


def without(images: Images, left_out: Tensor) -> Images:
    """The images without some training images, bool `(N,)`."""
    data = images.data
    kept = replace(data, train_images=data.train_images[~left_out], train_labels=data.train_labels[~left_out])
    return Images(kept, images.wrong[~left_out], *mean_and_std(kept.train_images))


def training_outliers(network: nn.Module, images: Images, probe_size: int) -> dict[str, Tensor]:
    """Which training images are outliers of any filter, bool `(N,)`, by reading.

    They are analysed in probes of about `probe_size` images drawn at random, as the damaged ones lie side by side.
    """
    everything = images.normalised("train")
    maps = capture(network, everything, READINGS["ours"])
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(_ORDER))
    probes = order.chunk(max(1, round(len(everything) / probe_size)))
    found = {reading: torch.zeros(len(everything), dtype=torch.bool) for reading in READINGS}
    for reading, outliers in found.items():
        for places in probes:
            outliers[places] = vote_count(analyze_places(maps, places, reading)) > 0
    return found


def found_damage(network: nn.Sequential, planted: Planted, margins: Margins) -> dict[str, Any]:
    """What finds the damaged images of both probes, when the network was trained on damaged images too."""
    reference = reference_features(network, planted)
    return {
        "train": measure_probe(network, planted.train, reference, margins.mean, damage=True)["damage"],
        "val": measure_probe(network, planted.val, reference, None, damage=True)["damage"],
    }


def leave_out(training: Training, root: str | None = None) -> dict[str, Any]:
    """Train with all images, without the outlier samples of that training, and without as many random ones.

    Some training images have wrong labels and some are damaged.

    Returns:
        `damage`, see `found_damage`. Test loss (nats) and accuracy of each training, see `History`: of `all` images,
        and for each reading without the `outliers` and without `random` ones, in as many steps; the number `left_out`,
        of which `wrong` are mislabelled and `damaged` damaged. Fewer than 20 are not left out.
    """
    planted = plant(training, root, damage=True)
    images = planted.images
    damaged = torch.zeros_like(images.wrong)
    damaged[[place for places in planted.train.damaged.values() for place in places]] = True

    def train(part: Images, *watchers: pl.Callback) -> tuple[nn.Sequential, dict[str, float]]:
        history = History(part)
        network = fit(training, part, [*watchers, history]).network
        assert isinstance(network, nn.Sequential)
        return network, history.summary()

    margins = Margins(planted.train)
    network, with_all = train(images, margins)
    found: dict[str, Any] = {"scores": list(SCORES), "damage": found_damage(network, planted, margins), "all": with_all}
    for reading, outliers in training_outliers(network, images, training.probe_size).items():
        arms: dict[str, Any] = {
            "left_out": int(outliers.sum()),
            "wrong": int((outliers & images.wrong).sum()),
            "damaged": int((outliers & damaged).sum()),
        }
        if arms["left_out"] >= _FEWEST:
            arms["outliers"] = train(without(images, outliers))[1]
            generator = torch.Generator().manual_seed(training.seed)
            orders = [torch.randperm(len(outliers), generator=generator) for _ in range(_RANDOM_DRAWS)]
            arms["random"] = [train(without(images, outliers[order]))[1] for order in orders]
        found[reading] = arms
    return found
