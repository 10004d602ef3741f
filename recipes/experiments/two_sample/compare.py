"""Do filters tell training images from others? `python -m recipes.experiments two_sample --data-root DIR`.

As long as a network has not overfitted, its training and its validation images are alike to it, so a filter that gives
larger values on either is rare: one in a hundred, at a p-value of 1%. This rule flags filters for a difference between
the two probes, not for a rare cluster in one of them, and needs no labels. All filters see the same images, so by
chance too many can be found at once; random divisions of the same images say how often. The hidden units of the linear
layers are judged in the same way. Each training's counts are a line of `two_sample.jsonl`; which of the rules is
best is decided on the runs of one seed, see `h1/choice.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.two_sample.rank_test import live_filters, random_divisions, rank_test, share_of_chance
from recipes.experiments.common.fitting import every_epoch, watched_layers
from recipes.experiments.common.trainings import Training, prepare

__all__ = ["CHANCE", "RULES", "compare", "follow", "p_name", "responses"]

_SIZE = 1024  # training images, compared with all validation images
CHANCE = 0.01  # of a false alarm
# What one number of a sample's map is compared: "units" are those of the hidden linear layers, the others are filters.
RULES = ("mean", "max", "units")


def hidden_layers(network: nn.Sequential) -> list[str]:
    """The linear layers but the last one, whose units are the classes."""
    return [str(place) for place, layer in enumerate(network) if isinstance(layer, nn.Linear)][:-1]


def responses(network: nn.Sequential, images: Tensor) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
    """Rectified values `(F, N)` of filters and hidden units on images `(N, C, H, W)`, by rule and layer; the logits."""
    filters, units = watched_layers(network, ""), hidden_layers(network)
    capture = MapCapture({name: network[int(name)] for name in (*filters, *units)}, summary=_mean_and_largest)
    logits = []
    with evaluating(network), torch.no_grad():
        for batch in torch.split(images, 256):
            with capture:
                logits.append(network(batch))
    values = {name: layer.maps.permute(1, 0, 2) for name, layer in capture.maps.items()}
    found = {
        "mean": {name: values[name][..., 0] for name in filters},
        "max": {name: values[name][..., 1] for name in filters},
        "units": {name: values[name][..., 0] for name in units},
    }
    return found, torch.cat(logits)


def _mean_and_largest(maps: Tensor) -> Tensor:
    """The mean and the largest value of each rectified map: `(n, F, ...)` gives `(n, F, 2)`."""
    flat = maps.reshape(*maps.shape[:2], -1).clamp(min=0)
    return torch.stack([flat.mean(2), flat.amax(2)], 2)


Compared = dict[str, dict[str, dict[str, float]]]


def compare(values: dict[str, dict[str, Tensor]], n_train: int) -> tuple[Compared, dict[str, float]]:
    """Of each layer the live filters, how many of them tell the images apart (`count`), and their mean area (`auc`).

    Args:
        values: See `responses`.
        n_train: How many of the images are training images; they are the first ones.

    Returns:
        By rule and layer; `auc` is 0.5 where no filter is live. And how often random divisions of the same images give
        as much or more, by name as in `p_name`: of the fraction of the live filters, and of their mean area.
    """
    some = next(tensor for layers in values.values() for tensor in layers.values())
    true = torch.arange(some.shape[1])[:, None] < n_train
    divisions = torch.cat([true, random_divisions(n_train, some.shape[1])], 1)  # the true one first
    found: Compared = {}
    by_chance: dict[str, float] = {}
    for rule, layers in values.items():
        counts, areas, lives = [], [], []
        for of_layer in layers.values():
            live = of_layer[live_filters(of_layer, n_train)]
            area, p_value = rank_test(live, divisions)
            counts.append((p_value <= CHANCE).sum(0).double())
            areas.append(area.sum(0))
            lives.append(len(live))
        found[rule] = {
            name: {"count": int(count[0]), "live": live, "auc": area[0].item() / live if live else 0.5}
            for name, count, area, live in zip(layers, counts, areas, lives, strict=True)
        }
        for statistic, sums in (("fraction", counts), ("auc", areas)):
            for last, chosen in ((False, sums), (True, sums[-1:])):
                if chosen:
                    of_all = torch.stack(chosen).sum(0)
                    by_chance[p_name(rule, statistic, last)] = share_of_chance(of_all[0].item(), of_all[1:])
    return found, by_chance


def p_name(rule: str, statistic: str, last: bool) -> str:
    """What the p-value of a rule's fraction or mean area is called, of all layers or of the last one."""
    return f"p {rule} {statistic}{' last' if last else ''}"


def follow(training: Training, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What tells the images apart after every epoch, in the shape of a line of `h1`.

    Args:
        training: The training.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The training's settings, and `epochs`: the validation loss, the network's `confidence` on training images less
        that on validation images, and what `compare` finds.
    """
    images = prepare(training, root)
    size = min(_SIZE, training.train_size)
    both = torch.cat([images.normalised("train", size), images.normalised("val")])
    both = both.contiguous(memory_format=torch.channels_last)
    epochs = []
    for _, network in every_epoch(training, images, weights):
        values, logits = responses(network, both)
        layers, by_chance = compare(values, size)
        confidence = logits.softmax(1).amax(1)
        epochs.append(
            {
                "val_loss": functional.cross_entropy(logits[size:].double(), images.data.val_labels).item(),
                "confidence": (confidence[:size].mean() - confidence[size:].mean()).item(),
                **by_chance,
                "layers": layers,
            }
        )
    return {"cell": asdict(training), "epochs": epochs}
