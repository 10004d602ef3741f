"""The figure of H2, made from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.experiments.common.tables import Line, group
from recipes.experiments.h2.detection import SCORES
from recipes.experiments.h2.measure import READINGS
from recipes.experiments.h2.tables import LAST, PROBES, SHARE, damage_in, measure_runs, ratios_of


def _draw_ratios(axis: Axes, runs: Sequence[Line], reading: str) -> None:
    for number, ((network, data), some) in enumerate(group(runs, "network", "data").items()):
        for (key, _), style in zip(PROBES, ("o-", "s--"), strict=True):
            points = []
            for place, epoch in enumerate(some[0]["epochs"]):
                measured = [run["epochs"][place] for run in some]
                ratios = [ratio for ratio, _, _ in ratios_of(measured, key, "mean", reading) if ratio is not None]
                if ratios:
                    points.append((epoch["epoch"], mean(ratios)))
            if points:
                label = f"{network}, {data}, {key}"
                axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, markersize=3)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set(xlabel="epoch", title=f"mean gradient norm, outliers / others ({reading})")
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    axis.set_xticks([], minor=True)


def draw(lines: Iterable[Line]) -> Figure:
    """The ratio of mean gradient norms over the epochs, and the AUROC of every score for what was planted."""
    runs = measure_runs(lines)
    figure = Figure(figsize=(12, 4.0), layout="constrained")
    *left, right = figure.subplots(1, 1 + len(READINGS), width_ratios=[1, 1, 2])
    for axis, reading in zip(left, READINGS, strict=True):
        _draw_ratios(axis, runs, reading)
    bars: dict[str, list[dict[str, Any]]] = {}
    bars["mislabelled"] = [run["epochs"][LAST]["train"]["ours"]["mislabelled"] for run in runs]
    for found in (damage_in(run, "val") for run in runs):
        for entry in [entry for entry in found if entry.endswith(f"/{SHARE}")]:
            bars.setdefault(entry.partition("/")[0], []).append(found[entry])
    width = 1 / (len(SCORES) + 1)
    for number, score in enumerate(SCORES):
        heights = []
        for results in bars.values():
            values = [one["auroc"][number] for one in results]
            heights.append(mean(values) if None not in values else float("nan"))
        shift = (number - (len(SCORES) - 1) / 2) * width
        right.bar([place + shift for place in range(len(bars))], heights, width, label=score)
    right.axhline(0.5, color="grey", linewidth=0.8)
    right.set_xticks(range(len(bars)), [name.replace("_", "\n") for name in bars], fontsize=7)
    right.set(
        ylim=(0, 1.12), title="AUROC at the last epoch (mislabelled: training probe; damage, 1%: validation probe)"
    )
    right.legend(fontsize=6, ncols=8, loc="upper center", columnspacing=0.8, handlelength=1)
    curves = {label: line for axis in left for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if curves:  # below, where it hides none of them
        figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=6, fontsize=6)
    for axis in (*left, right):
        axis.title.set_fontsize(8)
    return figure
