"""The figure of stopping by the output: how far the ratio rises in each training, and the loss at the stop."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lightning_anomaly.two_sample.rise import THRESHOLD
from recipes.experiments.common.tables import Line, group, is_long, is_overfitting
from recipes.experiments.output.tables import RULES, chosen_on, largest_rise, loss_over_best

__all__ = ["draw"]

_MARKERS = "os^DvP"  # of networks
_OVERFITTING, _HEALTHY = "#D55E00", "#0072B2"
_TO_THE_END = "none: train to the end"
_SHOWN = {
    "ratio of expected errors, rise of 10% (`AnomalyEarlyStopping`)": "ratio of expected errors",
    "validation loss, patience 5": "validation loss, patience 5 (labels)",
    _TO_THE_END: "trained to the end",
}


def draw(lines: Sequence[Line]) -> Figure:
    """Each training a point: its largest rise and its rise in loss; and the loss at which three rules leave it.

    Healthy trainings are blue, hollow ones had a part in the choice, those on all images are larger.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for marker, ((network,), own) in zip(_MARKERS, group(lines, "network").items(), strict=False):
        for line in own:
            colour = _OVERFITTING if is_overfitting(line) else _HEALTHY
            style = {
                "marker": marker,
                "s": 70 if is_long(line) else 28,
                "facecolors": "none" if chosen_on(line) else colour,
                "edgecolors": colour,
                "linewidths": 1,
            }
            left.scatter(max(largest_rise(line), 0.01), loss_over_best(RULES[_TO_THE_END], line), **style)
            for place, rule in enumerate(_SHOWN if is_overfitting(line) else ()):
                right.scatter(place, loss_over_best(RULES[rule], line), **style, alpha=0.8)
        left.scatter([], [], marker=marker, s=28, color="grey", label=network)
    left.axvline(THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="largest rise of the ratio of expected errors\n(0.01: none; the rule fires right of the dotted line)",
    )
    left.set_ylabel("validation loss at the end / best")
    left.legend(fontsize=8)
    left.set_title("all trainings: overfitting orange, healthy blue", fontsize=10)
    right.set(yscale="log", xlim=(-0.5, len(_SHOWN) - 0.5), ylabel="validation loss where it ends / best")
    right.set_xticks(range(len(_SHOWN)), _SHOWN.values(), fontsize=8)
    right.set_title("overfitting trainings", fontsize=10)
    for axes in (left, right):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
    return figure
