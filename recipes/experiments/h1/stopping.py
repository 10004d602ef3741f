"""When does each rule stop, and what does it cost? `python -m recipes.experiments stopping`.

Replays the rules of `stopping_rules` on the trainings that `h1` measured; nothing is trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from recipes.experiments.common.curves import joined
from recipes.experiments.common.store import lines_file, read_lines
from recipes.experiments.common.tables import Line, group, kinds, markdown, spread
from recipes.experiments.h1.stopping_rules import RULES, TWO_SAMPLE, replay
from recipes.experiments.h1.tables import short_runs

_COMPARED = (
    TWO_SAMPLE,
    "validation loss, patience 5",
    "validation accuracy, best of all epochs",
    "none: train to the end",
)


def stopping_table(lines: Sequence[Line]) -> str:
    """For each network and rule: accuracy and loss given away, epochs spent, and how many runs were stopped."""
    return _table(short_runs(lines), [rule for rule in RULES if rule != TWO_SAMPLE], "network")


def compared_table(lines: Sequence[Line], compared: Sequence[Line]) -> str:
    """The same for the rule of `two_sample`, with some others, on the trainings that both scripts followed; by data.

    Args:
        lines: The trainings that `h1` measured.
        compared: Those that `two_sample` followed.
    """
    return _table(joined(short_runs(lines), compared), _COMPARED, "network", "data")


def _table(lines: Sequence[Line], rules: Sequence[str], *names: str) -> str:
    rows = []
    for key, runs in group(lines, *names).items():
        trainings = kinds(runs)
        for rule in rules:
            bad, good = ([replay(line, rule) for line in kind] for kind in trainings)
            rows.append(
                (
                    *key,
                    rule,
                    spread([r["accuracy"] for r in bad], 1),
                    spread([r["loss"] for r in bad]),
                    f"{mean(r['epochs'] for r in bad):.0f}" if bad else "-",
                    f"{sum(r['stopped'] for r in bad):.0f} of {len(bad)}",
                    spread([r["accuracy"] for r in good], 1),
                    f"{sum(r['stopped'] for r in good):.0f} of {len(good)}",
                )
            )
    header = (
        *names, "rule", "overfitting: accuracy lost (points)", "loss above the best (nats)", "epochs",
        "stopped", "healthy: accuracy lost", "stopped",
    )  # fmt: skip
    return markdown(header, rows)


def draw(lines: Sequence[Line]) -> Figure:
    """The accuracy that each rule gives away in each network, in overfitting trainings and in healthy ones."""
    rules = [rule for rule in RULES if rule != TWO_SAMPLE]
    networks = group(short_runs(lines), "network")
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axis, ((network,), runs) in zip(axes, networks.items(), strict=True):
        looks = (("overfitting", "o", -0.15), ("healthy", "s", 0.15))
        for own, (kind, marker, shift) in zip(kinds(runs), looks, strict=True):
            costs = [[replay(line, rule)["accuracy"] for line in own] for rule in rules]
            lost = [mean(points) if points else float("nan") for points in costs]
            places = [place + shift for place in range(len(rules))]
            axis.plot(lost, places, marker, markersize=5, label=f"{kind} trainings")
        axis.set(title=network, xlabel="accuracy lost (points)")
        axis.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes[0].set_yticks(range(len(rules)), rules)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def run(options: argparse.Namespace) -> str:
    """Print and return the table.

    Raises:
        FileNotFoundError: If `h1` has not been run.
    """
    lines = read_lines(lines_file("h1", options.lines, options.quick))
    if not lines:
        quick = " --quick" if options.quick else ""
        raise FileNotFoundError(
            f"There are no trainings to replay: run `python -m recipes.experiments h1{quick}` first."
        )
    table = stopping_table(lines)
    print(table)
    return table
