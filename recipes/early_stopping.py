"""Stop a training that overfits, without a label: `python -m recipes.early_stopping`, or with `--data cifar10`.

Three trainings with an AnomalyEarlyStopping. The first overfits: few images, some of their labels wrong, nothing to
prevent it; it is stopped as its output gets surer of training images than of validation images. The second is healthy:
more images, augmentation and dropout. The third is like the first, but only its anomaly filters are watched, and a few
validation images have a brightness out of range from one epoch on, as if a camera had failed. The recipe says where
each was stopped, and where its validation loss was smallest.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_anomaly.callbacks import AnomalyEarlyStopping, AnomalyFilterCallback, TwoSampleCallback
from recipes.common.damage import over_expose, with_label_noise
from recipes.common.data import ImageData, Loader, make_loaders
from recipes.common.module import Classifier
from recipes.common.networks import build
from recipes.common.options import (
    add_training_options,
    at_least,
    one_sentence_errors,
    prepare_data,
    probe_size_in,
    quiet,
)

_COMPARED = 1024  # images of each kind


class Failing(pl.Callback):
    """Over-exposes some validation images when an epoch begins, and notes every validation loss."""

    def __init__(self, at_epoch: int | None, loader: Loader, data: ImageData) -> None:
        self.at_epoch = at_epoch
        self.loader = loader
        self.data = data
        self.losses: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Breaks the camera."""
        if trainer.current_epoch == self.at_epoch:
            over_expose(self.loader, self.data, slice(max(1, probe_size_in(self.data) // 80)))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Notes the loss."""
        self.losses.append(trainer.callback_metrics["val_loss"].item())


@dataclass(frozen=True)
class Outcome:
    """One training: what was watched and losses by epoch, and why it was stopped, if it was."""

    name: str
    watched: str
    values: list[float]
    losses: list[float]
    reason: str | None

    def __str__(self) -> str:
        best, end = min(range(len(self.losses)), key=self.losses.__getitem__), self.losses[-1]
        return "\n".join(
            [
                f"{self.name}: {len(self.losses)} epochs",
                f"  validation loss: smallest at epoch {best} ({self.losses[best]:.3f}), at the end {end:.3f}",
                f"  {self.watched} by epoch: {' '.join(f'{value:.2f}' for value in self.values)}",
                f"  {self.reason or 'Not stopped.'}",
            ]
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_options(parser, epochs=40, train_size=200)
    parser.add_argument(
        "--label-noise", type=float, default=0.3, help="wrong labels in few images, default: %(default)s"
    )
    parser.add_argument(
        "--healthy-size", type=at_least(1), default=900, help="images of the second, default: %(default)s"
    )
    parser.add_argument("--failing-at", type=at_least(0), default=10, help="epoch in the third, default: %(default)s")
    return parser.parse_args(arguments)


def train(name: str, data: ImageData, options: argparse.Namespace, healthy: bool, failing_at: int | None) -> Outcome:
    """One training, with everything the same but what the arguments say."""
    pl.seed_everything(options.seed, verbose=False)
    training, validation = make_loaders(data, options.batch_size, augment=healthy)
    failing = Failing(failing_at, validation, data)
    watcher: AnomalyFilterCallback | TwoSampleCallback
    if failing_at is None:  # the data sets hold images as they are, without augmentation
        train_images, val_images = (loader.dataset[:_COMPARED][0] for loader in (training, validation))
        watcher, watched = TwoSampleCallback(train_images, val_images, log_figures=False), "confidence_error_ratio"
    else:
        watcher, watched = AnomalyFilterCallback(probe_size=probe_size_in(data), log_figures=False), "fraction"
    stopping = AnomalyEarlyStopping(verbose=False)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        callbacks=[watcher, stopping, failing],
        logger=TensorBoardLogger(options.log_dir, name=f"early_stopping_{name.split()[0].lower()}"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    network = build(options.network, data.channels, data.n_classes, 0.3 if healthy else 0.0)
    with warnings.catch_warnings():
        if failing_at is not None:  # the images change, and that is what the callbacks are to find
            warnings.filterwarnings("ignore", message="The validation images of the probe changed")
        trainer.fit(Classifier(network, options.lr), training, validation)
    values = [entry["metrics"][watched] for entry in watcher.history]
    return Outcome(name, watched, values, failing.losses, stopping.stopping_reason_message)


def run(options: argparse.Namespace) -> list[Outcome]:
    """Train all three, print what happened, and return it."""
    quiet()
    few = prepare_data(options)
    probe_size_in(few)  # before the first training, not after the second
    labels, _ = with_label_noise(few.train_labels, options.label_noise, few.n_classes, options.seed)
    few = replace(few, train_labels=labels)
    many = prepare_data(options, "healthy_size")
    outcomes = []
    for name, data, healthy, failing_at in (
        (f"Overfitting ({len(few.train_images)} images)", few, False, None),
        (f"Healthy ({len(many.train_images)} images, augmentation, dropout)", many, True, None),
        (f"Failing camera (from epoch {options.failing_at})", few, False, options.failing_at),
    ):
        outcomes.append(train(name, data, options, healthy, failing_at))
        print(f"{outcomes[-1]}\n", flush=True)
    return outcomes


if __name__ == "__main__":
    one_sentence_errors(run, parse)
