"""Tables and the figure of what tells training images from others, made from its lines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from recipes.experiments.common.curves import best_epoch, layers_of, signal
from recipes.experiments.common.figures import draw_panels
from recipes.experiments.common.tables import Line, group, is_overfitting, markdown
from recipes.experiments.h1.choice import CHOSEN_ON, CONFIDENCE, score
from recipes.experiments.two_sample.compare import CHANCE, p_name

__all__ = ["STATISTICS", "alarm_table", "draw", "flagged_table", "two_sample_table"]

# What the tables show: a label, the rule, the statistic, and whether of the last layer alone.
STATISTICS = (
    ("filters, largest value", "max", "fraction", False),
    ("last convolution", "max", "fraction", True),
    ("mean area", "max", "auc", False),
    ("last convolution's mean area", "max", "auc", True),
    ("filters, mean value", "mean", "fraction", False),
    ("hidden units", "units", "fraction", False),
)


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
                    min(signal(run, name)) < CHANCE
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


def two_sample_table(lines: Sequence[Line]) -> str:
    """For each network and data set: how well the rules of `two_sample` follow and tell, and what else does.

    The runs of the seed on which the rule was chosen stand apart from the others.
    """
    confidence, name, reading = CONFIDENCE
    columns = [*STATISTICS, (confidence, reading, name, False)]
    rows = []
    for key, runs in group(lines, "network", "data").items():
        parts = {
            f"seed {CHOSEN_ON}": [run for run in runs if run["cell"]["seed"] == CHOSEN_ON],
            "others": [run for run in runs if run["cell"]["seed"] != CHOSEN_ON],
        }
        for label, some in parts.items():
            if some:
                scores = [score(some, name, rule, last) or "-" for _, rule, name, last in columns]
                rows.append((*key, label, len(some), *scores))
    return markdown(("network", "data", "seeds", "runs", *(label for label, *_ in columns)), rows)
