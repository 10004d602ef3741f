"""What does stopping cost? The losses, the accuracies and the gap after every epoch."""

from __future__ import annotations

from typing import Any

import torch

from lightning_anomaly.memorization.comparison import expected_error, mean_error
from lightning_anomaly.memorization.stop_rule import ErrorRise
from recipes.common.data import crop_and_flip
from recipes.common.module import evaluate_parts, logits_of
from recipes.experiments.fitting import every_epoch, prepare
from recipes.experiments.spec import Training

_SIZE = 1024  # at most as many images of each kind


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Measure after every epoch: losses, accuracies, the ratio of expected errors and its rise.

    On CIFAR-10 also `confidence_rise augmented`, by training images that are shifted and mirrored.
    """
    images = prepare(training, root)
    parts = {"train": images.part("train", _SIZE), "val": images.part("val"), "test": images.part("test")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        augmented = crop_and_flip(parts["train"][0])
    epochs, rise, rise_augmented = [], ErrorRise(), ErrorRise()
    for _, network in every_epoch(training, images, weights):
        row, logits = evaluate_parts(network, parts)
        train, val = (expected_error(logits[part][:_SIZE].softmax(1)) for part in ("train", "val"))
        row["confidence_error_ratio"] = mean_error(val) / mean_error(train)
        row["confidence_rise"] = rise.add(train, val)
        if training.data == "cifar10":
            shifted = expected_error(logits_of(network, augmented).double().softmax(1))
            row["confidence_rise augmented"] = rise_augmented.add(shifted, val)
        epochs.append(row)
    return {"epochs": epochs}
