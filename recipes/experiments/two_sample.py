"""Do filters tell training images from others? `python -m recipes.experiments.two_sample --data-root DIR`.

As long as a network has not overfitted, its training and its validation images are alike to it, so a filter that gives
larger values on either is rare: one in a hundred, at a p-value of 1%. This rule flags filters for a difference between
the two probes, not for a rare cluster in one of them, and needs no labels. All filters see the same images, so by
chance too many can be found at once; random divisions of the same images say how often. The hidden units of the linear
layers are judged in the same way. Each training's counts are a line of `lines/two_sample.jsonl`; which of the rules is
best is decided on the runs of one seed, see `h1_choice`.
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

from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.rank_test import divided_test, live_filters, random_divisions, share_of_chance
from recipes.experiments.cells import Cell, prepare
from recipes.experiments.h1_tables import draw_panels, is_overfitting
from recipes.experiments.search import add_options, run_missing_cells
from recipes.experiments.series import best_epoch, layers_of, signal
from recipes.experiments.tables import Line, group, markdown
from recipes.experiments.training import every_epoch, watched_layers
from recipes.options import one_sentence_errors

__all__ = ["RULES", "STATISTICS", "alarm_table", "compare", "draw", "flagged_table", "p_name", "responses"]

_SIZE = 1024  # training images, compared with all validation images
_CHANCE = 0.01  # of a false alarm
# What one number of a sample's map is compared: "units" are those of the hidden linear layers, the others are filters.
RULES = ("mean", "max", "units")
# What the tables show: a label, the rule, the statistic, and whether of the last layer alone.
STATISTICS = (
    ("filters, largest value", "max", "fraction", False),
    ("last convolution", "max", "fraction", True),
    ("mean area", "max", "auc", False),
    ("last convolution's mean area", "max", "auc", True),
    ("filters, mean value", "mean", "fraction", False),
    ("hidden units", "units", "fraction", False),
)


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


Compared = dict[str, dict[str, dict[str, float]]]


def compare(values: dict[str, dict[str, Tensor]], training: int) -> tuple[Compared, dict[str, float]]:
    """Of each layer the live filters, how many of them tell the images apart (`count`), and their mean area (`auc`).

    Args:
        values: See `responses`.
        training: How many of the images are training images; they are the first ones.

    Returns:
        By rule and layer; `auc` is 0.5 where no filter is live. And how often random divisions of the same images give
        as much or more, by name as in `p_name`: of the fraction of the live filters, and of their mean area.
    """
    some = next(tensor for layers in values.values() for tensor in layers.values())
    true = torch.arange(some.shape[1])[:, None] < training
    divisions = torch.cat([true, random_divisions(training, some.shape[1])], 1)  # the true one first
    found: Compared = {}
    by_chance: dict[str, float] = {}
    for rule, layers in values.items():
        counts, areas, lives = [], [], []
        for of_layer in layers.values():
            live = of_layer[live_filters(of_layer, training)]
            area, p_value = divided_test(live, divisions)
            counts.append((p_value <= _CHANCE).sum(0).double())
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


def follow(cell: Cell, root: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What tells the images apart after every epoch, in the shape of a line of `h1`.

    Args:
        cell: The cell.
        root: See `prepare`.
        weights: See `every_epoch`.

    Returns:
        The cell's settings, and `epochs`: the validation loss, the network's `confidence` on training images less that
        on validation images, and what `compare` finds.
    """
    images = prepare(cell, root)
    size = min(_SIZE, cell.train_size)
    both = torch.cat([images.normalised("train", size), images.normalised("val")])
    both = both.contiguous(memory_format=torch.channels_last)
    epochs = []
    for _, network in every_epoch(cell, images, weights):
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


def alarm_table(lines: Sequence[Line]) -> str:
    """For each network, data set and seed: how many trainings have a p-value below 1% after some epoch.

    Overfitting ones / healthy ones, for each of the statistics.
    """
    rows = []
    for key, runs in group(lines, "network", "data", "seed").items():
        cells = []
        for _, rule, statistic, last in STATISTICS:
            name = p_name(rule, statistic, last)
            alarms = {
                bad: [
                    min(signal(run, name)) < _CHANCE
                    for run in runs
                    if is_overfitting(run) == bad and name in run["epochs"][0]
                ]
                for bad in (True, False)
            }
            cells.append(" / ".join(f"{sum(found)} of {len(found)}" if found else "-" for found in alarms.values()))
        rows.append((*key, *cells))
    return markdown(("network", "data", "seed", *(label for label, *_ in STATISTICS)), rows)


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
