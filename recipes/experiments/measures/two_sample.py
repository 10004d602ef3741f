"""Do filters tell training images from others? The measurements after every epoch.

Hidden units of linear layers are judged in the same way. See docs/results/two_sample.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.memorization.ranks import permutation_p_value, random_divisions, rank_test, responding_filters
from recipes.experiments.fitting import every_epoch, prepare, watched_layers
from recipes.experiments.spec import Training

_SIZE = 1024  # training images, compared with all validation images
_CHANCE = 0.01  # of a false alarm
Values = dict[str, dict[str, Tensor]]


@torch.no_grad()
def responses(network: nn.Sequential, images: Tensor) -> tuple[Values, Tensor]:
    """Compute rectified values `(F, N)` of images `(N, C, H, W)`, by rule and layer, and the logits.

    The rules are the `mean` and the `max` of a filter's map, and the values of hidden linear `units`.
    """
    filters = watched_layers(network)
    units = [str(place) for place, layer in enumerate(network) if isinstance(layer, nn.Linear)][:-1]
    rules: dict[str, Iterable[str]] = {"mean": filters, "max": filters, "units": units}
    batches = {rule: {name: list[Tensor]() for name in names} for rule, names in rules.items()}
    logits = []
    for batch in torch.split(images, 256):
        for name, layer in network.named_children():
            batch = layer(batch)
            if name in filters:
                batches["mean"][name].append(batch.clamp(min=0).mean((2, 3)).T)
                batches["max"][name].append(batch.clamp(min=0).amax((2, 3)).T)
            elif name in units:
                batches["units"][name].append(batch.clamp(min=0).T)
        logits.append(batch)
    found = {rule: {name: torch.cat(parts, 1) for name, parts in layers.items()} for rule, layers in batches.items()}
    return found, torch.cat(logits)


def compare(values: Values, n_train: int) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Compare the values of the first `n_train` images, the training images, with those of the others.

    Returns:
        By rule and layer the number of tested filters (`live`), the `count` of significant ones, and the mean area
        `auc`, 0.5 if no filter is tested. And by `p RULE STATISTIC` the share of random divisions of the same images
        with as large a fraction of significant filters or mean area; with ` last`, of the last layer alone.
    """
    some = next(tensor for layers in values.values() for tensor in layers.values())
    true = torch.arange(some.shape[1])[:, None] < n_train
    divisions = torch.cat([true, random_divisions(n_train, some.shape[1])], 1)  # the true one first
    found, by_chance = {}, {}
    for rule, layers in values.items():
        counts, areas, lives = [], [], []
        for of_layer in layers.values():
            tested = of_layer[responding_filters(of_layer, n_train)]
            area, p_value = rank_test(tested, divisions)
            counts.append((p_value <= _CHANCE).sum(0).double())
            areas.append(area.sum(0))
            lives.append(len(tested))
        found[rule] = {
            name: {"count": int(count[0]), "live": live, "auc": area[0].item() / live if live else 0.5}
            for name, count, area, live in zip(layers, counts, areas, lives, strict=True)
        }
        for statistic, sums in (("fraction", counts), ("auc", areas)):
            for last, chosen in (("", sums), (" last", sums[-1:])):
                if chosen:
                    total = torch.stack(chosen).sum(0)
                    by_chance[f"p {rule} {statistic}{last}"] = permutation_p_value(total[0].item(), total[1:])
    return found, by_chance


def measure(training: Training, root: str | None, weights: str | None) -> dict[str, Any]:
    """Measure after every epoch: `compare`, the validation loss, and the gap in `confidence`.

    The gap is the mean largest softmax probability of training images minus that of validation images.
    """
    images = prepare(training, root)
    size = min(_SIZE, training.train_size)
    val, val_labels = images.part("val")
    both = torch.cat([images.part("train", size)[0], val])
    epochs = []
    for _, network in every_epoch(training, images, weights):
        values, logits = responses(network, both)
        layers, by_chance = compare(values, size)
        confidence = logits.softmax(1).amax(1)
        row = {"val_loss": functional.cross_entropy(logits[size:].double(), val_labels).item()}
        row["confidence"] = (confidence[:size].mean() - confidence[size:].mean()).item()
        epochs.append({**row, **by_chance, "layers": layers})
    return {"epochs": epochs}
