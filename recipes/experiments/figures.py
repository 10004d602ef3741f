"""The figures of the results, drawn from their lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.experiments.spec import OVERFITTING
from recipes.experiments.tables import h2, h3, harm, output, stopping
from recipes.experiments.tables.curves import layers_of, signal
from recipes.experiments.tables.writer import Frame, kinds, runs

_COLORS = {"overfitting": "#0072B2", "noise10": "#E69F00", "noise30": "#009E73", "noise20": "#D55E00",
            "augmented": "#CC79A7", "regularised": "black", "more_data": "#56B4E9"}  # fmt: skip
Panel = tuple[str, str, str, bool]  # title, signal and reading as in `curves.signal`, and whether of the last layer
_LOSS = ("validation loss (nats)", "val_loss", "val", False)
_FRACTIONS = (("anomaly fraction", "fraction", "val", False),
              ("the same, paper's reading", "fraction", "val_paper", False))  # fmt: skip


def _panels(some: Frame, panels: Sequence[Panel]) -> Figure:
    """Draw signals over the epochs: a row for each network and data set, the mean over seeds for each condition."""
    groups = some.groupby(["network", "data"])
    figure = Figure(figsize=(7.5, 1.7 * len(groups) + 0.5), layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for row, (key, group) in zip(axes, groups, strict=True):
        for condition, seeds in group.groupby("condition", observed=True):
            for axis, (_, name, reading, last) in zip(row, panels, strict=True):
                curves = [signal(line, name, reading, layers_of(line, reading)[-1] if last else None)
                          for line in seeds.line]  # fmt: skip
                average = np.mean(curves, axis=0)
                style = {"linestyle": "-" if condition in OVERFITTING else "--", "color": _COLORS[condition]}
                axis.plot(range(1, len(average) + 1), average, label=condition, linewidth=1.3, **style)
        row[0].set_ylabel("\n".join(key))
        for axis in row:
            top = max(axis.get_ylim()[1], 0.01)
            axis.set_ylim(-0.03 * top, top)  # so that a curve at 0 is visible
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel[0], fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    shown = {str(line.get_label()): line for axis in axes[:, 0] for line in axis.get_lines()}
    names = [name for name in _COLORS if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _h1(long: bool) -> Figure:
    """The paper's figure: losses and anomaly fractions over the epochs, of overfitting and healthy runs."""
    some, more = runs("h1"), (("isolated filters", "set_apart", "val", False),) if long else ()
    return _panels(some[some.long == long], (_LOSS, *_FRACTIONS, *more))


def _two_sample() -> Figure:
    """The share of the filters, and of the last convolution's, that tell the images apart, over the epochs."""
    shares = (("filters that tell training images", "fraction", "max", False),
              ("those of the last convolution", "fraction", "max", True))  # fmt: skip
    return _panels(runs("two_sample"), ((*_LOSS[:2], "max", False), *shares))


def _stopping() -> Figure:
    """The accuracy that each rule loses, by network, in overfitting and in healthy runs."""
    some = runs("h1")
    groups = some[~some.long].groupby("network")
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True)
    for axis, (network, group) in zip(axes, groups, strict=True):
        looks = (("overfitting", "o", -0.15), ("healthy", "s", 0.15))
        for kind, (label, marker, shift) in zip(kinds(group), looks, strict=True):
            lost = [mean(stopping.replay(line, rule)["accuracy"] for line in kind.line) for rule in
                    stopping.RULES.values()]  # fmt: skip
            axis.plot(lost, np.arange(len(lost)) + shift, marker, markersize=5, label=f"{label} runs")
        axis.set(title=network, xlabel="accuracy lost (points)")
        axis.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes[0].set_yticks(range(len(stopping.RULES)), stopping.RULES)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _harm() -> Figure:
    """A point for each rule and new run: the loss where the rule ends the run, and the accuracy still to come."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    losses = [f"loss,\npatience\n{patience}" for patience in (3, 5, 10)]
    labels = ["gap and\nloss", "smooth\nloss", "gap\nalone", *losses, "accuracy,\npatience\n10", "to the\nend"]
    parts = {name: group for name, group in harm.parts().items() if name != "all"}
    for shift, (marker, (part, group)) in enumerate(zip("os^D", parts.items(), strict=True)):
        for place, rule in enumerate(harm.SHOWN.values()):
            costs = [output.cost(rule, line) for line in group.line]
            places = [place + 0.18 * (shift - 1.5)] * len(costs)
            style: dict[str, Any] = {"marker": marker, "s": 16, "color": f"C{shift}", "alpha": 0.7}
            axes[0].scatter(places, [each.val_loss for each in costs], label=part if place == 0 else None, **style)
            axes[1].scatter(places, [each.later for each in costs], **style)
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


def _gradients(axis: Axes, some: Frame, reading: str) -> None:
    for number, (key, group) in enumerate(some.groupby(["network", "data"])):
        for probe, style in zip(h2.PROBES, ("o-", "s--"), strict=True):
            points = []
            for place, epoch in enumerate(group.line.iloc[0]["epochs"]):
                measured = [line["epochs"][place] for line in group.line]
                ratios = [ratio for ratio, _, _ in h2.ratios_of(measured, probe, reading)]
                points += [(epoch["epoch"], mean(ratios))] if ratios else []
            if points:
                label = ", ".join((*key, probe))
                axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, markersize=3)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set(xlabel="epoch", title=f"mean gradient norm, outliers / others ({reading})", xscale="log")
    axis.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    axis.set_xticks([], minor=True)


def _h2() -> Figure:
    """The ratio of mean gradient norms over the epochs."""
    some = runs("h2")
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    grid = figure.subplots(1, 2)
    for axis, reading in zip(grid, h2.READINGS, strict=True):
        _gradients(axis, some, reading)
        axis.title.set_fontsize(8)
    curves = {label: line for axis in grid for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _h3() -> Figure:
    """Change of the validation loss by masking, for every run: the range of random masks, and the other masks."""
    styles = {"l1": "C0^", "sparsest": "C1s", "anomaly": "C3o"}
    some = runs("h3").sort_values(["network", "data", "condition", "seed"], ignore_index=True)
    groups = {"\n".join(key): list(group.index) for key, group in some.groupby(["network", "data"])}
    figure, handles = Figure(figsize=(7.5, 5.5), layout="constrained"), {}
    panels = (("best", "0"), ("last", "0"), ("last", "3"))
    grid = figure.subplots(2, len(panels), sharex=True)
    for row, (reading, name) in zip(grid, h3.READINGS.items(), strict=True):
        for axis, (state, moment) in zip(row, panels, strict=True):
            for place, line in h3.flagged_runs(some, reading, moment, state).line.items():
                where = (moment, "val_loss", state)
                start = mean(h3.values(line, reading, "nothing", *where))
                random = [loss / start for loss in h3.values(line, reading, "random", *where)]
                axis.plot([place, place], [min(random), max(random)], color="0.8", linewidth=4, solid_capstyle="butt")
                for arm, style in styles.items():
                    if (found := h3.average(line, reading, arm, *where)) is not None:
                        (handles[arm],) = axis.plot(place, found / start, style, markersize=3)
            for places in groups.values():
                axis.axvline(max(places) + 0.5, color="0.8", linewidth=0.6)
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set_xticks([mean(places) for places in groups.values()], list(groups), fontsize=7, rotation=90)
            axis.tick_params("x", length=0)
            axis.set_title(f"{name}\n{'best epoch, ' if state == 'best' else ''}{h3.MOMENTS[moment]}", fontsize=8)
        row[0].set_ylabel("validation loss /\nthat of nothing masked", fontsize=8)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "h1.png": lambda: _h1(long=False),
    "h1_long.png": lambda: _h1(long=True),
    "two_sample.png": _two_sample,
    "stopping.png": _stopping,
    "h2.png": _h2,
    "h3.png": _h3,
    "harm.png": _harm,
}
