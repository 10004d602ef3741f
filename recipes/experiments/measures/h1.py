"""H1: does the number of anomaly filters rise with overfitting? The measurements after every epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_anomaly import AnalysisSettings, analyze
from recipes.common.module import evaluate_parts
from recipes.experiments.fitting import Images, every_epoch, prepare, watched_layers
from recipes.experiments.measures.gradients import batch_disparity
from recipes.experiments.spec import Training

_READINGS = {"val": AnalysisSettings(), "val_paper": AnalysisSettings.paper()}
_FIXED = 1024  # training images whose predictions are compared from epoch to epoch


def _layers(network: nn.Sequential, images: Images, size: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure each layer, by reading and name.

    Returns:
        `count` anomaly filters of `live` ones; of the default reading also `set_apart`, filters with isolated samples,
        the mean `sparsity`, and the `weight_variance` of the convolution.
    """
    convolutions, (probe, _) = watched_layers(network), images.part("val", size)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for reading, settings in _READINGS.items():
        report, found[reading] = analyze(network, probe, layers=list(convolutions), settings=settings), {}
        for name, layer in report.layers.items():
            live = layer.filters("anomaly") + layer.filters("normal")
            statistics: dict[str, float] = {"count": len(layer.filters("anomaly")), "live": len(live)}
            if reading == "val":
                weight = network.get_submodule(convolutions[name]).get_parameter("weight").detach()
                statistics |= {"set_apart": len(layer.isolated_filters), "sparsity": layer.sparsity.mean().item(),
                               "weight_variance": weight.var().item()}  # fmt: skip
            found[reading][name] = statistics
    return found


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Train, and measure after every epoch: losses, accuracies, signals of other stopping rules, and layers."""
    images = prepare(training, root)
    parts = {"val": images.part("val"), "test": images.part("test"), "train": images.part("train", _FIXED)}
    epochs, before = [], torch.full_like(parts["train"][1], -1)
    for _, network in every_epoch(training, images, weights):
        row, logits = evaluate_parts(network, parts)
        now = logits["train"].argmax(1)
        row["changed"] = (now != before).double().mean().item()
        row["disparity"] = batch_disparity(network, *parts["train"], training.batch_size)
        epochs.append(row | {"layers": _layers(network, images, training.probe_size)})
        before = now
    return {"epochs": epochs}
