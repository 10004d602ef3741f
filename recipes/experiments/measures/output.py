"""Does the output tell overfitting, and when? The measurements after every epoch.

A network that overfits is more confident on its training images than on validation images; 1,024 of each are compared.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.memorization.comparison import compare_confidences, expected_error, mean_error
from lightning_anomaly.memorization.stop_rule import ErrorRise
from recipes.common.module import evaluate_parts
from recipes.experiments.fitting import every_epoch, prepare
from recipes.experiments.measures.gradients import batch_disparity
from recipes.experiments.spec import Training

_SIZE = 1024  # images of each kind


def compare_outputs(train: Tensor, val: Tensor, train_labels: Tensor, val_labels: Tensor) -> dict[str, float]:
    """Compare logits `(n, C)` of training images with logits `(m, C)` of validation images.

    Returns:
        The area and the `confidence_...` of the largest softmax probability, as the package has them; `log_odds_gap`,
        the gap of its log-odds; `log_overconfidence`, the logarithm of the errors made on validation images over those
        expected; and the area by the `loss` (the smaller, the more confident).
    """
    area, gap, p_value = compare_confidences(*(logits.softmax(1).amax(1) for logits in (train, val)))
    found = {"confidence_auc": area, "confidence_gap": gap, "confidence_p_value": p_value}
    errors = [expected_error(logits.softmax(1)) for logits in (train, val)]
    found["confidence_error_ratio"] = mean_error(errors[1]) / mean_error(errors[0])
    odds = [torch.log((1 - error) / error.clamp(min=torch.finfo(error.dtype).tiny)).mean() for error in errors]
    found["log_odds_gap"] = (odds[0] - odds[1]).item()
    made = (val.argmax(1) != val_labels).double()
    found["log_overconfidence"] = math.log(mean_error(made) / mean_error(errors[1]))
    both = ((train, train_labels), (val, val_labels))
    losses = [functional.cross_entropy(logits, labels, reduction="none") for logits, labels in both]
    found["loss_auc"] = 1 - compare_confidences(*losses)[0]
    return found


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Measure after every epoch: losses, accuracies, `compare_outputs`, the rise, and signals of other stopping rules.

    The latter are the share of training images whose prediction `changed`, the `disparity` of the gradients of five
    batches, and the mean variance of the layers' weights.
    """
    images = prepare(training, root)
    parts = {"train": images.part("train", _SIZE), "val": images.part("val"), "test": images.part("test")}
    labels = {part: classes for part, (_, classes) in parts.items()}
    epochs, rise, before = [], ErrorRise(), torch.full_like(labels["train"], -1)
    for _, network in every_epoch(training, images, weights):
        row, logits = evaluate_parts(network, parts)
        now = logits["train"].argmax(1)
        row["changed"] = (now != before).double().mean().item()
        before = now
        row["disparity"] = batch_disparity(network, *parts["train"], training.batch_size)
        variances = [weight.var() for weight in network.parameters() if weight.ndim > 1]
        row["weight_variance"] = torch.stack(variances).mean().item()
        row |= compare_outputs(logits["train"], logits["val"], labels["train"], labels["val"])
        row["confidence_rise"] = rise.add(*(expected_error(logits[part].softmax(1)) for part in ("train", "val")))
        epochs.append(row)
    return {"epochs": epochs}
