"""Do filters tell training images from others? `python -m recipes.experiments.two_sample --data-root DIR`.

As long as a network has not overfitted, its training and its validation images are alike to it, so a filter that gives
larger values on either is rare: one in a hundred, at a p-value of 1%. This rule flags filters for a difference between
the two probes, not for a rare cluster in one of them, needs no labels, and its false alarms are known. The hidden
units of the linear layers are judged in the same way. Each training's counts are a line of `lines/two_sample.jsonl`;
which of the rules is best is decided on the runs of one seed, see `h1_choice`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.capture import MapCapture, evaluating
from lightning_anomaly.two_sample import rank_test
from recipes.experiments.cells import Cell, prepare
from recipes.experiments.h1_tables import draw_panels
from recipes.experiments.search import add_options, run_missing_cells
from recipes.experiments.series import best_epoch, layers_of, signal
from recipes.experiments.tables import Line, group, markdown
from recipes.experiments.training import every_epoch, watched_layers
from recipes.options import one_sentence_errors

__all__ = ["RULES", "compare", "draw", "flagged_table", "responses"]

_SIZE = 1024  # training images, compared with all validation images
_CHANCE = 0.01  # of a false alarm
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
    """The mean and the largest value of each map: `(n, F, ...)` gives `(n, F, 2)`."""
    flat = maps.reshape(*maps.shape[:2], -1)
    return torch.stack([flat.mean(2), flat.amax(2)], 2)


def compare(values: dict[str, dict[str, Tensor]], training: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of each layer the live filters, how many of them tell the images apart (`count`), and their mean area (`auc`).

    Args:
        values: See `responses`.
        training: How many of the images are training images; they are the first ones.

    Returns:
        By rule and layer. Live are the filters whose values are not all the same; `auc` is 0.5 where there are none.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for rule, layers in values.items():
        found[rule] = {}
        for name, of_layer in layers.items():
            live = of_layer[of_layer.amax(1) > of_layer.amin(1)]
            area, p_value = rank_test(live[:, :training], live[:, training:])
            found[rule][name] = {
                "count": int((p_value <= _CHANCE).sum()),
                "live": len(live),
                "auc": area.mean().item() if len(live) else 0.5,
            }
    return found


def follow(cell: Cell, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What tells the images apart after every epoch, in the shape of a line of `h1`.

    Args:
        cell: The cell.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The cell's settings, and `epochs`: the validation loss, the network's `confidence` on training images less that
        on validation images, and `layers`, by rule and layer.
    """
    images = prepare(cell, root)
    size = min(_SIZE, cell.train_size)
    both = torch.cat([images.normalised("train", size), images.normalised("val")])
    both = both.contiguous(memory_format=torch.channels_last)
    epochs = []
    for _, network in every_epoch(cell, images, weights):
        values, logits = responses(network, both)
        confidence = logits.softmax(1).amax(1)
        epochs.append(
            {
                "val_loss": functional.cross_entropy(logits[size:].double(), images.data.val_labels).item(),
                "confidence": (confidence[:size].mean() - confidence[size:].mean()).item(),
                "layers": compare(values, size),
            }
        )
    return {"cell": asdict(cell), "epochs": epochs}


def flagged_table(lines: Sequence[Line]) -> str:
    """For each network, data set and condition: the share of the live filters that tell the images apart.

    By their largest values; after the first epoch, the one with the smallest validation loss and the last one, in all
    convolutions and in the last one, and of the hidden units; mean over the seeds.
    """
    rows = []
    for key, runs in group(lines, "network", "data", "condition").items():
        losses = [signal(run, "val_loss") for run in runs]
        rows.append(
            (
                *key,
                len(runs),
                f"{mean(map(min, losses)):.2f} → {mean(loss[-1] for loss in losses):.2f}",
                _course(runs, "max", last=False),
                _course(runs, "max", last=True),
                _course(runs, "units", last=False),
            )
        )
    header = ("network", "data", "condition", "seeds", "validation loss, best → end",
              "filters, first epoch → best → end", "those of the last convolution", "hidden units")  # fmt: skip
    return markdown(header, rows)


def _course(runs: Sequence[Line], rule: str, last: bool) -> str:
    found = []
    for run in runs:
        layers = layers_of(run, rule)
        if not layers:
            return "-"
        values = signal(run, "fraction", rule, layers[-1] if last else None)
        found.append((values[0], values[best_epoch(run)], values[-1]))
    return " → ".join(f"{mean(values):.3f}" for values in zip(*found, strict=True))


def draw(lines: Sequence[Line]) -> Figure:
    """The share of the filters, and of the last convolution's, that tell the images apart, over the epochs."""
    panels = (
        ("validation loss (nats)", "val_loss", "max", False),
        ("filters that tell training images", "fraction", "max", False),
        ("those of the last convolution", "fraction", "max", True),
    )
    return draw_panels(lines, panels)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing; returns the lines."""
    return run_missing_cells(options, "two_sample", follow)


if __name__ == "__main__":
    one_sentence_errors(run, parse)
