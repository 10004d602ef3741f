"""Tables and the figure of H1, made from its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median

from matplotlib.figure import Figure

from recipes.experiments.common.curves import (
    after_best,
    auroc,
    best_epoch,
    correlation,
    late_change,
    layers_of,
    partial_correlation,
    signal,
    sustained_rise,
)
from recipes.experiments.common.tables import Line, group, markdown, spread
from recipes.experiments.common.trainings import CONDITIONS, OVERFITTING, Cell

__all__ = [
    "SOURCES",
    "draw_curves",
    "draw_long",
    "draw_panels",
    "is_overfitting",
    "layer_table",
    "long_table",
    "run_table",
    "short_runs",
    "signal_table",
]

Panel = tuple[str, str, str, bool]
# The signals compared: a name, the signal, and the reading that it is taken from.
SOURCES = (
    ("anomaly fraction", "fraction", "val"),
    ("anomaly fraction, maps not rectified", "fraction", "val_unrectified"),
    ("anomaly fraction, paper's reading", "fraction", "val_paper"),
    ("anomaly fraction, training probe", "fraction", "train"),
    ("isolated anomaly filters", "isolated", "val"),
    ("anomaly filters silent but for a few samples", "silent", "val"),
    ("sparsity", "sparsity", "val"),
    ("kurtosis", "kurtosis", "val"),
    ("class separation, training less validation", "separation", "val"),
    ("variance outside two components", "outside", "val"),
    ("variance of the second component", "second", "val"),
    ("weight variance", "weight_variance", "val"),
    ("weight norm", "weight_norm", "val"),
    ("epoch number", "epoch", "val"),
)


def is_overfitting(line: Line) -> bool:
    """Whether a training belongs to the conditions that overfit, and not to the healthy controls."""
    return line["cell"]["condition"] in OVERFITTING


def short_runs(lines: Iterable[Line]) -> list[Line]:
    """The runs that have the full matrix's number of training images in an epoch, which the long ones exceed."""
    return [line for line in lines if line["cell"]["train_size"] <= Cell.train_size]


def _long_runs(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["cell"]["train_size"] > Cell.train_size]


def run_table(lines: Sequence[Line]) -> str:
    """For each network, data set and condition: the loss, the anomaly fraction, and whether one follows the other."""
    rows = []
    for key, runs in group(short_runs(lines), "network", "data", "condition").items():
        losses = [signal(run, "val_loss") for run in runs]
        fractions = [signal(run, "fraction") for run in runs]
        at_best = [values[best_epoch(run)] for run, values in zip(runs, fractions, strict=True)]
        rows.append(
            (
                *key,
                len(runs),
                f"{mean(min(loss) for loss in losses):.2f} → {mean(loss[-1] for loss in losses):.2f}",
                f"{mean(best_epoch(run) + 1 for run in runs):.0f} of {len(losses[0])}",
                f"{mean(at_best):.3f} → {mean(values[-1] for values in fractions):.3f}",
                spread([correlation(f, loss) for f, loss in zip(fractions, losses, strict=True)]),
                spread([_after_best(run, "fraction", "val") for run in runs]),
                spread([_after_best(run, "fraction", "val_paper") for run in runs]),
                spread([sustained_rise(values) for values in fractions], 3),
            )
        )
    header = (
        "network", "data", "condition", "seeds", "validation loss, best → end", "best epoch",
        "anomaly fraction, best → end", "Spearman, whole run", "Spearman after best",
        "the same, paper's reading", "largest rise",
    )  # fmt: skip
    return markdown(header, rows)


def _after_best(line: Line, name: str, reading: str, layer: str | None = None) -> float | None:
    loss = after_best(line, signal(line, "val_loss"))
    return correlation(after_best(line, signal(line, name, reading, layer)), loss)


def _partial_after_best(line: Line, name: str, reading: str, layer: str | None = None) -> float | None:
    values = (signal(line, name, reading, layer), signal(line, "val_loss"), signal(line, "sparsity", layer=layer))
    a, b, given = (after_best(line, each) for each in values)
    return partial_correlation(a, b, given)


def _median(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{median(found):+.2f}" if found else "-"


def told_apart(lines: Sequence[Line], score: Callable[[Line], float]) -> str:
    """AUROC of a score of overfitting runs against healthy ones."""
    value = auroc([score(line) for line in lines], [is_overfitting(line) for line in lines])
    return "-" if value is None else f"{value:.2f}"


def _row(lines: Sequence[Line], name: str, reading: str, layer: str | None = None) -> tuple[str, str, str]:
    overfitting = [line for line in lines if is_overfitting(line)]
    return (
        _median(_after_best(line, name, reading, layer) for line in overfitting),
        _median(_partial_after_best(line, name, reading, layer) for line in overfitting),
        told_apart(lines, lambda line: late_change(signal(line, name, reading, layer))),
    )


def signal_table(lines: Sequence[Line]) -> str:
    """For each network and signal, over all its layers: does it follow the loss, does it tell the runs apart?"""
    rows = [
        (network, label, *_row(runs, name, reading))
        for (network,), runs in group(short_runs(lines), "network").items()
        for label, name, reading in SOURCES
    ]
    return markdown(("network", "signal", "Spearman after best", "the same given sparsity", "AUROC"), rows)


def layer_table(lines: Sequence[Line]) -> str:
    """For each layer: what `signal_table` says of the anomaly fraction, in both readings, and of sparsity."""
    rows = []
    for (network,), runs in group(short_runs(lines), "network").items():
        for layer in layers_of(runs[0]):
            sources = (("fraction", "val"), ("fraction", "val_paper"), ("sparsity", "val"))
            cells = [_row(runs, name, reading, layer) for name, reading in sources]
            rows.append((network, layer, *(f"{rho} / {apart}" for rho, _, apart in cells)))
    header = ("network", "layer", "anomaly fraction", "paper's reading", "sparsity")
    return markdown(header, rows)


def long_table(lines: Sequence[Line]) -> str:
    """Runs on all images: fractions at the best epoch and at the end, and what follows the validation loss between."""
    rows = []
    for line in [run for runs in group(_long_runs(lines), "network", "data", "condition").values() for run in runs]:
        loss, best = signal(line, "val_loss"), best_epoch(line)
        cells = []
        for reading in ("val", "val_paper"):
            values = signal(line, "fraction", reading)
            cells.append(f"{values[best]:.3f} → {values[-1]:.3f}")
            follows = _after_best(line, "fraction", reading), _partial_after_best(line, "fraction", reading)
            cells.append(" / ".join("-" if value is None else f"{value:+.2f}" for value in follows))
            cells.append(f"{late_change(values):+.3f}")
        cells += [_median([_after_best(line, name, "val")]) for name in ("sparsity", "epoch")]
        cells.append(f"{late_change(signal(line, 'sparsity')):+.3f}")
        losses = f"{loss[best]:.2f} → {loss[-1]:.2f}"
        cell = [line["cell"][name] for name in ("network", "data", "condition", "seed")]
        rows.append((*cell, losses, f"{best + 1} of {len(loss)}", *cells))
    header = (
        "network", "data", "condition", "seed", "validation loss, best → end", "best epoch",
        "anomaly fraction, best → end", "Spearman after best / given sparsity", "change, second to last quarter",
        "paper's reading, best → end", "Spearman after best / given sparsity", "change, second to last quarter",
        "sparsity's Spearman", "epoch number's", "sparsity's change",
    )  # fmt: skip
    return markdown(header, rows)


def draw_long(lines: Sequence[Line]) -> Figure:
    """The figure for the runs on all images."""
    return draw_panels(_long_runs(lines), _PANELS)


def draw_curves(lines: Sequence[Line]) -> Figure:
    """The paper's figure: losses and anomaly fraction over the epochs, overfitting and healthy, mean over the seeds."""
    return draw_panels(short_runs(lines), _PANELS)


def draw_panels(lines: Sequence[Line], panels: Sequence[Panel]) -> Figure:
    """Signals over the epochs, one line for each condition, mean over the seeds.

    Args:
        lines: Trainings; each network and data set is a row.
        panels: The columns: title, signal and reading as in `series.signal`, and whether of the last layer alone.
    """
    groups = group(lines, "network", "data")
    figure = Figure(figsize=(9, 2.3 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for row, ((network, data), runs) in zip(axes, groups.items(), strict=True):
        for (condition,), some in group(runs, "condition").items():
            colour = f"C{list(CONDITIONS).index(condition)}"
            style = "-" if condition in OVERFITTING else "--"
            for axis, (_, name, reading, last) in zip(row, panels, strict=True):
                curves = [signal(line, name, reading, layers_of(line, reading)[-1] if last else None) for line in some]
                average = [mean(values) for values in zip(*curves, strict=True)]
                epochs = range(1, len(average) + 1)
                axis.plot(epochs, average, style, color=colour, label=condition, linewidth=1.3)
        row[0].set_ylabel(f"{network}\n{data}")
        for axis in row:
            top = max(axis.get_ylim()[1], 0.01)
            axis.set_ylim(-0.03 * top, top)  # a curve at 0 is seen
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel[0], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    lines_of = {str(line.get_label()): line for axis in axes[:, 0] for line in axis.get_lines()}
    shown = [name for name in CONDITIONS if name in lines_of]
    figure.legend([lines_of[name] for name in shown], shown, loc="outside lower center", ncols=6, fontsize=8)
    return figure


_PANELS = (
    ("validation loss (nats)", "val_loss", "val", False),
    ("anomaly fraction", "fraction", "val", False),
    ("the same, paper's reading", "fraction", "val_paper", False),
)
