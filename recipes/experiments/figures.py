"""The figures of the results, made from their lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_anomaly.two_sample.rise import THRESHOLD
from recipes.experiments.spec import DATA, OVERFITTING
from recipes.experiments.tables import harm, outliers, output, stopping
from recipes.experiments.tables.curves import layers_of, signal
from recipes.experiments.tables.writer import Frame, kinds, runs

_BLUE, _RED = "#0072B2", "#D55E00"
_COLOURS = {"overfitting": _BLUE, "noise10": "#E69F00", "noise30": "#009E73", "noise20": _RED, "augmented": "#CC79A7",
            "regularised": "black", "more_data": "#56B4E9"}  # fmt: skip
Panel = tuple[str, str, str, bool]  # title, signal and reading as in `curves.signal`, and whether of the last layer
_LOSS = ("validation loss (nats)", "val_loss", "val", False)
_FRACTIONS = (
    ("anomaly fraction", "fraction", "val", False),
    ("the same, paper's reading", "fraction", "val_paper", False),
)


def _panels(some: Frame, panels: Sequence[Panel]) -> Figure:
    """Signals over the epochs, a row for each network and data set, a line for each condition, mean over the seeds."""
    groups = some.groupby(["network", "data"])
    figure = Figure(figsize=(7.5, 1.7 * len(groups) + 0.5), layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for row, (key, own) in zip(axes, groups, strict=True):
        for condition, seeds in own.groupby("condition", observed=True):
            for axis, (_, name, reading, last) in zip(row, panels, strict=True):
                curves = [signal(line, name, reading, layers_of(line, reading)[-1] if last else None)
                          for line in seeds.line]  # fmt: skip
                average = np.mean(curves, axis=0)
                style = {"linestyle": "-" if condition in OVERFITTING else "--", "color": _COLOURS[condition]}
                axis.plot(range(1, len(average) + 1), average, label=condition, linewidth=1.3, **style)
        row[0].set_ylabel("\n".join(key))
        for axis in row:
            top = max(axis.get_ylim()[1], 0.01)
            axis.set_ylim(-0.03 * top, top)  # a curve at 0 is seen
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel[0], fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    shown = {str(line.get_label()): line for axis in axes[:, 0] for line in axis.get_lines()}
    names = [name for name in _COLOURS if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _h1(long: bool) -> Figure:
    """The paper's figure: losses and anomaly fractions over the epochs, overfitting and healthy."""
    some, more = runs("h1"), (("isolated filters", "set_apart", "val", False),) if long else ()
    return _panels(some[some.long == long], (_LOSS, *_FRACTIONS, *more))


def _two_sample() -> Figure:
    """The share of the filters, and of the last convolution's, that tell the images apart, over the epochs."""
    told = (("filters that tell training images", "fraction", "max", False),
            ("those of the last convolution", "fraction", "max", True))  # fmt: skip
    return _panels(runs("two_sample"), ((*_LOSS[:2], "max", False), *told))


def _stopping() -> Figure:
    """The accuracy that each rule gives away in each network, in overfitting runs and in healthy ones."""
    some = runs("h1")
    groups = some[~some.long].groupby("network")
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True)
    for axis, (network, own) in zip(axes, groups, strict=True):
        looks = (("overfitting", "o", -0.15), ("healthy", "s", 0.15))
        for kind, (label, marker, shift) in zip(kinds(own), looks, strict=True):
            lost = [mean(stopping.replay(line, rule)["accuracy"] for line in kind.line) for rule in
                    stopping.RULES.values()]  # fmt: skip
            axis.plot(lost, np.arange(len(lost)) + shift, marker, markersize=5, label=f"{label} runs")
        axis.set(title=network, xlabel="accuracy lost (points)")
        axis.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes[0].set_yticks(range(len(stopping.RULES)), stopping.RULES)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _output() -> Figure:
    """Each run a point: its largest rise and its rise in loss; and the loss at which three rules leave it.

    Healthy runs are blue, hollow ones had a part in the choice, those on all images are larger.
    """
    figure, some = Figure(figsize=(7.5, 3.9), layout="constrained"), runs("output")
    some["chosen"] = output.chosen_on(some)
    left, right = figure.subplots(1, 2)
    ratio, patience, to_the_end = (next(rule for rule in output.RULES if rule.startswith(start))
                                   for start in ("rise of 5%", "validation loss, patience 5", "none"))  # fmt: skip
    shown = {
        ratio: "a gap and\nvalidation loss",
        patience: "validation loss,\npatience 5 (labels)",
        to_the_end: "trained\nto the end",
    }
    for marker, (network, own) in zip("os^DvP", some.groupby("network"), strict=False):
        for run in own.itertuples():
            colour = _RED if run.overfitting else _BLUE
            style: dict[str, Any] = {"marker": marker, "s": 70 if run.long else 28, "edgecolors": colour,
                                     "facecolors": "none" if run.chosen else colour, "linewidths": 1}  # fmt: skip
            rise = max(output.largest_rise(run.line), 0.01)
            left.scatter(rise, output.loss_over_best(output.RULES[to_the_end], run.line), **style)
            for place, rule in enumerate(shown if run.overfitting else ()):
                right.scatter(place, output.loss_over_best(output.RULES[rule], run.line), **style, alpha=0.8)
        left.scatter([], [], marker=marker, s=28, color="grey", label=network)
    left.axvline(THRESHOLD, color="black", linewidth=0.8, linestyle=":")
    rises = "largest rise of the ratio of expected errors\n(0.01: none; dotted: `confirm=None` stops)"
    left.set(xscale="log", yscale="log", xlabel=rises, ylabel="validation loss at the end / best")
    left.legend(fontsize=8)
    left.set_title("all runs: overfitting orange, healthy blue", fontsize=10)
    right.set(yscale="log", xlim=(-0.5, len(shown) - 0.5), ylabel="validation loss where it ends / best")
    right.set_xticks(range(len(shown)), shown.values(), fontsize=8)
    right.set_title("overfitting runs", fontsize=10)
    for axes in (left, right):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="both", labelsize=8)
    return figure


def _harm() -> Figure:
    """Each new run a point for each rule: its loss where the rule ends it, and the accuracy that was still to come."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    losses = [f"loss,\npatience\n{patience}" for patience in (3, 5, 10)]
    labels = ["gap and\nloss", "smooth\nloss", "gap\nalone", *losses, "accuracy,\npatience\n10", "to the\nend"]
    parts = {name: own for name, own in harm.parts(runs("harm")).items() if name != "all"}
    for shift, (marker, (part, lines)) in enumerate(zip("os^D", parts.items(), strict=True)):
        for place, rule in enumerate(harm.SHOWN.values()):
            costs = [harm.cost(rule, line) for line in lines]
            places = [place + 0.18 * (shift - 1.5)] * len(costs)
            style: dict[str, Any] = {"marker": marker, "s": 16, "color": f"C{shift}", "alpha": 0.7}
            axes[0].scatter(places, [own.val_loss for own in costs], label=part if place == 0 else None, **style)
            axes[1].scatter(places, [own.later for own in costs], **style)
    axes[0].set(yscale="log", ylabel="validation loss where it ends / best")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].tick_params(axis="y", which="both", labelsize=8)
    axes[0].legend(fontsize=7)
    axes[1].set_ylabel("accuracy still to come (points)")
    axes[1].axhline(2, color="black", linewidth=0.8, linestyle=":")
    for axis in axes:
        axis.set_xticks(range(len(labels)), labels, fontsize=6)
    return figure


def _outliers() -> Figure:
    """The mean AUROC of every score for each group of kinds, on either data set and with either input."""
    found = outliers.results()
    figure = Figure(figsize=(9.0, 8.5), layout="constrained")
    grid, places = figure.subplots(2, 2, sharex=True, sharey=True), product(("probe", "reference"), DATA)
    for axes, (question, data) in zip(grid.flat, places, strict=True):
        own = found[(found.question == question) & (found.data == data)]
        pivot = own.pivot_table("auroc", "score", "group", observed=True, margins=True, margins_name="all")
        values = pivot.reindex(list(outliers.SCORES)).to_numpy(dtype=float)
        image = axes.imshow(values, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if value == value:
                colour = "black" if 0.15 < value < 0.85 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(values.shape[1]), pivot.columns, fontsize=8, rotation=30)
        axes.set_yticks(range(len(values)), outliers.SCORES, fontsize=8)
        axes.set_title(f"{data}, {outliers.QUESTIONS[question]}", fontsize=9)
    figure.suptitle("Mean AUROC for kinds of damage that the outlier score was not chosen on", fontsize=10)
    figure.colorbar(image, ax=grid)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "h1.png": lambda: _h1(long=False),
    "h1_long.png": lambda: _h1(long=True),
    "two_sample.png": _two_sample,
    "stopping.png": _stopping,
    "stopping_output.png": _output,
    "harm.png": _harm,
    "outliers.png": _outliers,
}
