"""H1: does the number of anomaly filters rise with overfitting? `python -m recipes.experiments h1 --data-root DIR`.

Writes what was measured after each epoch of every training to `h1.jsonl`; `stopping` reads the same lines.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly import AnalysisSettings, AnomalyFilterCallback
from lightning_anomaly.capture.hooks import isolated_random_state
from lightning_anomaly.capture.images import training_batches
from recipes.common.evaluation import evaluate, logits_of
from recipes.common.networks import build
from recipes.experiments.common.fitting import KeepWeights, fit, watched_layers
from recipes.experiments.common.gradients import batch_disparity
from recipes.experiments.common.trainings import (
    Images,
    Training,
    prepare,
)
from recipes.experiments.h1.layer_statistics import layer_statistics, weight_statistics

__all__ = ["READINGS", "watch"]

# What is read from every epoch, by arguments of the callback: the default, its variants, and the paper's reading.
READINGS: dict[str, dict[str, Any]] = {
    "val": {},
    "val_unrectified": {"settings": AnalysisSettings(rectify=False)},
    "val_paper": {"settings": AnalysisSettings.paper()},
    "train": {"probe": "train"},
}
# What is kept of the statistics of the others than the default: all of them would be megabytes.
_KEPT = {"val_unrectified": ("count", "live"), "val_paper": ("count", "live"), "train": ("count", "live", "separation")}
_FIXED = 1024  # training images whose predictions are compared from epoch to epoch


class Measure(pl.Callback):
    """Writes down every epoch; stands behind the watchers whose reports it reads.

    Args:
        training: The training.
        images: Its images.
        watchers: The callbacks, by reading.
        convolutions: For each layer that they watch, the convolution that its maps come from.
    """

    def __init__(
        self,
        training: Training,
        images: Images,
        watchers: dict[str, AnomalyFilterCallback],
        convolutions: dict[str, str],
    ) -> None:
        self.watchers, self.convolutions = watchers, convolutions
        self.epochs: list[dict[str, Any]] = []
        self.test = images.normalised("test"), images.data.test_labels
        # An epoch of a larger pool does not see each image, so predictions are compared on a fixed part of them.
        self.fixed = images.normalised("train", _FIXED), images.data.train_labels[:_FIXED]
        self.labels = {"val": images.data.val_labels[: training.probe_size]}
        self.batch_size, self.probe_size = training.batch_size, training.probe_size
        self.predictions: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What the network predicts before the first step."""
        self.predictions = logits_of(pl_module, self.fixed[0]).argmax(1)
        seed = self.watchers["train"].settings.seed
        with isolated_random_state(seed):  # the collation of an augmented batch draws from it
            batches = list(training_batches(trainer.train_dataloader, self.probe_size, seed))
        self.labels["train"] = torch.cat([labels for _, labels in batches])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the epoch that has just been validated."""
        logits = logits_of(pl_module, self.fixed[0])
        predictions = logits.argmax(1)
        assert self.predictions is not None
        changed = (predictions != self.predictions).double().mean().item()
        self.predictions = predictions
        test_loss, test_accuracy = evaluate(pl_module, *self.test)
        self.epochs.append(
            {
                **{name: trainer.callback_metrics[name].item() for name in ("val_loss", "val_acc")},
                "train_loss": functional.cross_entropy(logits, self.fixed[1]).item(),
                "train_acc": (predictions == self.fixed[1]).double().mean().item(),
                "test_loss": test_loss,
                "test_acc": test_accuracy,
                "changed": changed,
                "disparity": batch_disparity(pl_module, *self.fixed, self.batch_size),
                "layers": {name: self._layers(name, pl_module) for name in self.watchers},
            }
        )

    def _layers(self, reading: str, pl_module: pl.LightningModule) -> dict[str, dict[str, float]]:
        watcher = self.watchers[reading]
        assert watcher.report is not None
        labels = self.labels[watcher.probe]
        found = {}
        for name, layer in watcher.report.layers.items():
            statistics = layer_statistics(layer, labels)
            if reading == "val":
                convolution = pl_module.get_submodule(self.convolutions[name])
                statistics |= weight_statistics(convolution.get_parameter("weight").detach())
            kept = _KEPT.get(reading, statistics)
            found[name.removeprefix("network.")] = {key: statistics[key] for key in kept}
        return found


def watch(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Train, and measure every epoch.

    Args:
        training: What to train.
        root: See `prepare`.
        weights: Folder to keep every epoch's weights in; None keeps none.

    Returns:
        The training's settings, and `epochs`: a dict for each.
    """
    images = prepare(training, root)
    layers = watched_layers(build(training.network, images.data.channels, images.data.n_classes))
    watchers = {
        name: AnomalyFilterCallback(
            layers=list(layers),
            probe_size=training.probe_size,
            log_key_prefix=name,
            log_figures=False,
            on_error="raise",
            **arguments,
        )
        for name, arguments in READINGS.items()
    }
    measure = Measure(training, images, watchers, layers)
    keep = [KeepWeights(Path(weights) / training.key)] if weights else []
    fit(training, images, [*watchers.values(), measure, *keep])
    return {"cell": asdict(training), "epochs": measure.epochs}
