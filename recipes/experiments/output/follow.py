"""Does the output tell overfitting, and when? `python -m recipes.experiments output --data-root DIR`.

A network that overfits is surer of its training images than of validation images. After every epoch of a training, by
how much, of 1,024 images of each kind: as the ratio of the errors that it expects and the rise of that ratio, also of
fewer and more images, as a probability, in log-odds, and as areas under the ROC curve by numbers that need no label
(the largest softmax probability, the entropy, the margin, the energy) and by one that needs them (the loss); beside the
losses and accuracies that say when to stop and what others stop by: how many predictions changed (Label Wave), the
disparity of gradients, the variance of the weights. Each training is a line of `output.jsonl`. `tables.chosen_on` says
which of them the rule is chosen on; it is reported on all others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.two_sample.confidence import compare_confidences, error_ratio, expected_error, mean_error
from lightning_anomaly.two_sample.rise import ErrorRise
from recipes.common.evaluation import logits_of
from recipes.experiments.common.fitting import every_epoch
from recipes.experiments.common.gradients import batch_disparity
from recipes.experiments.common.options import chosen_trainings
from recipes.experiments.common.trainings import DATA, NETWORKS, Training, prepare

__all__ = ["SCORES", "SIZES", "Rises", "compare_outputs", "follow", "jobs"]

_SIZE = 1024  # images of each kind
SIZES = (128, 256, 512, 2048)  # fewer of them, and more: training images, and validation images with test images


def _margin(logits: Tensor) -> Tensor:
    largest = logits.softmax(1).topk(2, 1).values
    return largest[:, 0] - largest[:, 1]


# How sure a network is of a sample, from logits `(N, C)`.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": lambda logits: logits.softmax(1).amax(1),
    "entropy": lambda logits: (logits.softmax(1) * logits.log_softmax(1)).sum(1),
    "margin": _margin,
    "energy": lambda logits: logits.logsumexp(1),
}


def jobs(options: argparse.Namespace) -> list[Training]:
    """The trainings that the options ask for: one seed after the other, and of each CIFAR-10 first."""
    chosen = chosen_trainings(options, networks=NETWORKS)
    return chosen if options.quick else sorted(chosen, key=lambda own: (own.seed, DATA.index(own.data)))


def compare_outputs(train: Tensor, val: Tensor, train_labels: Tensor, val_labels: Tensor) -> dict[str, float]:
    """What logits `(n, C)` of training images and `(m, C)` of validation images say of the two.

    Returns:
        The area and the `confidence_...` of the largest softmax probability, as the package has them; `log_odds_gap`,
        the gap of its log-odds; `log_overconfidence`, the logarithm of the errors made on validation images over those
        expected; and the areas by the other `SCORES` and by the `loss` (the smaller, the surer).
    """
    found: dict[str, float] = {}
    for name, score in SCORES.items():
        found[f"{name}_auc"], gap, p_value = compare_confidences(score(train), score(val))
        if name == "confidence":
            found |= {"confidence_gap": gap, "confidence_p_value": p_value}
    errors = [expected_error(logits.softmax(1)) for logits in (train, val)]
    found["confidence_error_ratio"] = error_ratio(*errors)
    odds = [torch.log((1 - own) / own.clamp(min=torch.finfo(own.dtype).tiny)).mean() for own in errors]
    found["log_odds_gap"] = (odds[0] - odds[1]).item()
    made = (val.argmax(1) != val_labels).double()
    found["log_overconfidence"] = math.log(mean_error(made) / mean_error(errors[1]))
    losses = [
        functional.cross_entropy(logits, labels, reduction="none")
        for logits, labels in ((train, train_labels), (val, val_labels))
    ]
    found["loss_auc"] = 1 - compare_confidences(*losses)[0]
    return found


class Rises:
    """The rise of the ratio of expected errors, by 1,024 images of each kind and by `SIZES` of them."""

    def __init__(self) -> None:
        self.rises = {size: ErrorRise() for size in (_SIZE, *SIZES)}

    def add(self, known: Tensor, unseen: Tensor) -> dict[str, float]:
        """`confidence_rise` after one more epoch, with the logits of both kinds `(n, C)`, `(m, C)`, and `... SIZE`."""
        errors = [expected_error(logits.softmax(1)) for logits in (known, unseen)]
        return {
            "confidence_rise" + ("" if size == _SIZE else f" {size}"): rise.add(*(own[:size] for own in errors))
            for size, rise in self.rises.items()
        }


def follow(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What the output says after every epoch.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The training's settings, and `epochs`: losses (nats) and accuracies, the share of 1,024 training images whose
        prediction `changed` (of all, after the first epoch), the `disparity` of the gradients of five batches of them,
        the mean variance of the layers' weights, and what `compare_outputs` and `Rises` find.
    """
    images = prepare(training, root)
    parts = {
        part: images.normalised(part, size).contiguous(memory_format=torch.channels_last)
        for part, size in (("train", max(SIZES)), ("val", None), ("test", None))
    }
    labels = {"train": images.data.train_labels[:_SIZE], "val": images.data.val_labels, "test": images.data.test_labels}
    epochs = []
    rises = Rises()
    before: Tensor | None = None
    for _, network in every_epoch(training, images, weights):
        logits = {part: logits_of(network, own).double() for part, own in parts.items()}
        risen = rises.add(logits["train"], torch.cat([logits["val"], logits["test"]]))
        logits["train"] = logits["train"][:_SIZE]
        row: dict[str, float] = {}
        for part, own in logits.items():
            row[f"{part}_loss"] = functional.cross_entropy(own, labels[part]).item()
            row[f"{part}_acc"] = (own.argmax(1) == labels[part]).double().mean().item()
        now = logits["train"].argmax(1)
        row["changed"] = 1.0 if before is None else (now != before).double().mean().item()
        before = now
        row["disparity"] = batch_disparity(network, parts["train"][:_SIZE], labels["train"], training.batch_size)
        weights_of_layers = [own for own in network.parameters() if own.ndim > 1]
        row["weight_variance"] = torch.stack([own.var() for own in weights_of_layers]).mean().item()
        row |= compare_outputs(logits["train"], logits["val"], labels["train"], labels["val"])
        epochs.append(row | risen)
    return {"cell": asdict(training), "epochs": epochs}
