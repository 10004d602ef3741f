"""Where does a network overfit? It is trained on from its best epoch, with all layers or with some of them frozen.

If the validation loss rises as much with frozen convolutions, then nothing that is seen in their maps can follow it.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from recipes.common.module import evaluate
from recipes.experiments.fitting import best_and_last, further_epochs, prepare
from recipes.experiments.spec import Training

__all__ = ["measure"]

# What goes on learning.
_ARMS: dict[str, tuple[type[nn.Module], ...]] = {
    "all layers": (nn.Conv2d, nn.Linear),
    "linear layers": (nn.Linear,),
    "convolutions": (nn.Conv2d,),
}


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """The `best` epoch, and validation loss and accuracies there (`start`) and at the end of each arm."""
    images = prepare(training, root)
    parts = {
        part: (images.normalised(part), getattr(images.data, f"{part}_labels")) for part in ("val", "test", "train")
    }

    def row(network: nn.Module) -> dict[str, float]:
        losses = {part: evaluate(network, *own) for part, own in parts.items()}
        return {"val_loss": losses["val"][0], "test_acc": losses["test"][1], "train_acc": losses["train"][1]}

    best, start = best_and_last(training, images, weights)["best"]
    found: dict[str, Any] = {"best": best, "start": row(start), "arms": {}}
    for name, learning in _ARMS.items():
        network = copy.deepcopy(start)
        for layer in network:
            layer.requires_grad_(isinstance(layer, learning))
        for _ in further_epochs(training, images, network, training.epochs - best):
            pass
        found["arms"][name] = row(network)
    return found
