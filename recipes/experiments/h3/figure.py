"""The figure of H3, made from its lines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from recipes.experiments.common.tables import Line, group
from recipes.experiments.h3.tables import MOMENTS, READING_NAMES, average, flagged_runs, values


def draw(lines: Sequence[Line]) -> Figure:
    """Change of the validation loss by masking in every run: the range of random draws, and the other masks in it."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = (("best", "0"), ("last", "0"), ("last", "3"))
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True)
    in_order = [run for runs in group(lines, "network", "data", "condition", "seed").values() for run in runs]
    places = {run["key"]: place for place, run in enumerate(in_order)}
    groups = {
        "\n".join(key): [places[run["key"]] for run in runs] for key, runs in group(lines, "network", "data").items()
    }
    handles: dict[str, Any] = {}
    for row, (reading, name) in zip(grid, READING_NAMES.items(), strict=True):
        for axis, (state, moment) in zip(row, panels, strict=True):
            for run in flagged_runs(lines, reading, moment, state):
                place = places[run["key"]]
                start = mean(values(run, reading, "nothing", moment, "val_loss", state))
                random = [loss / start for loss in values(run, reading, "random", moment, "val_loss", state)]
                axis.plot([place, place], [min(random), max(random)], color="0.8", linewidth=4, solid_capstyle="butt")
                for arm, style in _STYLES.items():
                    found = average(run, reading, arm, moment, "val_loss", state)
                    if found is not None:
                        (handles[arm],) = axis.plot(place, found / start, style, markersize=3)
            for cells in groups.values():
                axis.axvline(max(cells) + 0.5, color="0.8", linewidth=0.6)
            axis.axhline(1, color="black", linewidth=0.6)
            axis.set_xticks([mean(cells) for cells in groups.values()], list(groups), fontsize=6, rotation=90)
            axis.tick_params("x", length=0)
            when = "best epoch, " if state == "best" else ""
            axis.set_title(f"{name}\n{when}{MOMENTS[moment]}", fontsize=8)
        row[0].set_ylabel("validation loss /\nthat of nothing masked", fontsize=8)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, fontsize=8)
    return figure


_STYLES = {"l1": "C0^", "fpgm": "C2v", "sparsest": "C1s", "matched": "kx", "anomaly": "C3o"}
