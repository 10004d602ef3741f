"""Where does a network overfit? `python -m recipes.experiments frozen --data-root DIR`.

Takes the networks of the overfitting runs of `h1` as they were at their best epoch and trains them on for as many
epochs as `h1` did: all layers, only the linear ones (convolutions frozen), or only the convolutions. If the validation
loss rises as much with frozen convolutions, then nothing that is seen in their maps can follow it. A line of
`frozen.jsonl` for each network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import torch
from torch import nn

from recipes.common.evaluation import evaluate
from recipes.experiments.common.fitting import every_epoch, further_epochs
from recipes.experiments.common.tables import Line, group, markdown, spread
from recipes.experiments.common.trainings import Images, Training, prepare

__all__ = ["ARMS", "experiment", "frozen_table"]

# What goes on learning.
ARMS: dict[str, tuple[type[nn.Module], ...]] = {
    "all layers": (nn.Conv2d, nn.Linear),
    "linear layers": (nn.Linear,),
    "convolutions": (nn.Conv2d,),
}


def train_on(
    training: Training, images: Images, network: nn.Sequential, learning: tuple[type[nn.Module], ...], epochs: int
) -> None:
    """Train the parameters of some kinds of layers on, in place."""
    for layer in network:
        layer.requires_grad_(isinstance(layer, learning))
    for _ in further_epochs(training, images, network, epochs):
        pass


def experiment(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Train the network of a training on from its best epoch, in each of ARMS.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The training's settings, its `best` epoch, and the validation loss (nats), test accuracy and training accuracy
        there (`start`) and after the last epoch of each arm.
    """
    images = prepare(training, root)
    parts = {
        part: images.normalised(part).contiguous(memory_format=torch.channels_last) for part in ("val", "test", "train")
    }

    def row(network: nn.Module) -> dict[str, float]:
        return {
            "val_loss": evaluate(network, parts["val"], images.data.val_labels)[0],
            "test_acc": evaluate(network, parts["test"], images.data.test_labels)[1],
            "train_acc": evaluate(network, parts["train"], images.data.train_labels)[1],
        }

    lowest = float("inf")
    for epoch, network in every_epoch(training, images, weights):
        loss = evaluate(network, parts["val"], images.data.val_labels)[0]
        if loss < lowest:
            lowest, best, start = loss, epoch, copy.deepcopy(network)
    found: dict[str, Any] = {"cell": asdict(training), "best": best, "start": row(start), "arms": {}}
    for name, learning in ARMS.items():
        network = copy.deepcopy(start)
        train_on(training, images, network, learning, training.epochs - best)
        found["arms"][name] = row(network)
    return found


def frozen_table(lines: Sequence[Line]) -> str:
    """For each network and data set: the validation loss and the accuracies at the best epoch and after each arm."""
    rows = []
    for (network, data), runs in group(lines, "network", "data").items():
        stages = {"best epoch": [run["start"] for run in runs]}
        stages |= {f"then {name}": [run["arms"][name] for run in runs] for name in ARMS}
        for stage, some in stages.items():
            rows.append(
                (
                    network,
                    data,
                    stage,
                    len(runs),
                    spread([one["val_loss"] for one in some]),
                    f"{100 * mean(one['train_acc'] for one in some):.1f}%",
                    f"{100 * mean(one['test_acc'] for one in some):.1f}%",
                )
            )
    return markdown(
        ("network", "data", "trained", "seeds", "validation loss", "training accuracy", "test accuracy"), rows
    )
