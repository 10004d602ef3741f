"""Tables and the figures of H1, made from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import linear_regression, mean, median
from typing import Any

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
from recipes.experiments.common.figures import draw_panels
from recipes.experiments.common.tables import Line, group, is_long, is_overfitting, kinds, markdown, spread

__all__ = [
    "SOURCES",
    "draw_curves",
    "draw_long",
    "layer_table",
    "long_signal_table",
    "long_table",
    "run_table",
    "short_runs",
    "signal_table",
]

# The signals compared: a name, the signal, and the reading that it is taken from.
SOURCES = (
    ("anomaly fraction", "fraction", "val"),
    ("anomaly fraction, maps not rectified", "fraction", "val_unrectified"),
    ("anomaly fraction, paper's reading", "fraction", "val_paper"),
    ("anomaly fraction, training probe", "fraction", "train"),
    ("anomaly filters with a gap", "isolated", "val"),
    ("isolated filters", "set_apart", "val"),
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
_LONG_SOURCES = (
    ("anomaly fraction", "fraction", "val"),
    ("paper's reading", "fraction", "val_paper"),
    ("isolated filters", "set_apart", "val"),
    ("sparsity", "sparsity", "val"),
)
_PANELS = (
    ("validation loss (nats)", "val_loss", "val", False),
    ("anomaly fraction", "fraction", "val", False),
    ("the same, paper's reading", "fraction", "val_paper", False),
)


def short_runs(lines: Iterable[Line]) -> list[Line]:
    """The runs that have the full matrix's number of training images in an epoch, which the long ones exceed."""
    return [line for line in lines if not is_long(line)]


def _long_runs(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if is_long(line)]


def run_table(lines: Sequence[Line]) -> str:
    """For each network, data set and condition: the loss, the anomaly fraction, and whether one follows the other."""
    rows = []
    for key, runs in group(short_runs(lines), "network", "data", "condition").items():
        losses = [signal(run, "val_loss") for run in runs]
        fractions = [signal(run, "fraction") for run in runs]
        ends = [(values[best_epoch(run)], values[-1]) for run, values in zip(runs, fractions, strict=True)]
        whole = [correlation(f, loss) for f, loss in zip(fractions, losses, strict=True)]
        rows.append(
            (
                *key,
                len(runs),
                f"{mean(min(loss) for loss in losses):.2f} → {mean(loss[-1] for loss in losses):.2f}",
                f"{mean(best_epoch(run) + 1 for run in runs):.0f} of {len(losses[0])}",
                " → ".join(f"{mean(values):.3f}" for values in zip(*ends, strict=True)),
                spread(whole),
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


def _told_apart(lines: Sequence[Line], scores: Sequence[float]) -> str:
    """AUROC of the scores of overfitting runs against those of healthy ones."""
    value = auroc(scores, [is_overfitting(line) for line in lines])
    return "-" if value is None else f"{value:.2f}"


def _row(lines: Sequence[Line], name: str, reading: str, layer: str | None = None) -> tuple[str, str, str]:
    overfitting, _ = kinds(lines)
    return (
        _median(_after_best(line, name, reading, layer) for line in overfitting),
        _median(_partial_after_best(line, name, reading, layer) for line in overfitting),
        _told_apart(lines, [late_change(signal(line, name, reading, layer)) for line in lines]),
    )


def signal_table(lines: Sequence[Line]) -> str:
    """For each network and signal, over all its layers: does it follow the loss, does it tell the runs apart?"""
    rows = [
        (network, label, len(runs), *_row(runs, name, reading))
        for (network,), runs in group(short_runs(lines), "network").items()
        for label, name, reading in SOURCES
    ]
    return markdown(("network", "signal", "runs", "Spearman after best", "the same given sparsity", "AUROC"), rows)


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
    """Runs on all images: what is counted at the best epoch and at the end, and how sparsity and the epoch follow."""
    rows = []
    for line in [run for runs in group(_long_runs(lines), "network", "data", "condition").values() for run in runs]:
        loss, best = signal(line, "val_loss"), best_epoch(line)
        cells = []
        for _, name, reading in _LONG_SOURCES:
            values = signal(line, name, reading)
            follows = _after_best(line, name, reading), _partial_after_best(line, name, reading)
            cells.append(
                f"{values[best]:.3f} → {values[-1]:.3f}, {late_change(values):+.3f}, "
                + " / ".join("-" if value is None else f"{value:+.2f}" for value in follows)
            )
        cell = [line["cell"][name] for name in ("network", "data", "condition", "seed")]
        rows.append((*cell, f"{loss[best]:.2f} → {loss[-1]:.2f}", f"{best + 1} of {len(loss)}", *cells))
    labels = [label for label, *_ in _LONG_SOURCES]
    header = ("network", "data", "condition", "seed", "validation loss, best → end", "best epoch", *labels)
    return markdown(header, rows)


def long_signal_table(lines: Sequence[Line]) -> str:
    """What `signal_table` says, of the runs on all images, by network and of all of them together.

    And in how many pairs of an overfitting and a healthy run, of the same images and seed, the former changes more.
    """
    runs = _long_runs(lines)
    groups = {network: some for (network,), some in group(runs, "network").items()} | {"all": runs}
    rows = []
    for network, some in groups.items():
        for label, name, reading in (*_LONG_SOURCES, ("epoch number", "epoch", "val")):
            changes = [
                f"{mean(late_change(signal(line, name, reading)) for line in kind):+.3f}" if kind else "-"
                for kind in kinds(some)
            ]
            rho, given, area = _row(some, name, reading)
            rest = _told_given_sparsity(some, name, reading)
            rows.append((network, label, rho, given, *changes, area, rest, _pairs(some, name, reading)))
    header = ("network", "signal", "Spearman after best", "the same given sparsity", "change: overfitting", "healthy",
              "AUROC", "the same given sparsity", "larger when overfitting")  # fmt: skip
    return markdown(header, rows)


def _told_given_sparsity(lines: Sequence[Line], name: str, reading: str) -> str:
    """AUROC of late changes less what those of sparsity explain of them, by a line through all runs."""
    if name in ("sparsity", "epoch") or len(lines) < 6:  # of fewer a line explains too much
        return "-"
    sparsity = [late_change(signal(line, "sparsity")) for line in lines]
    changes = [late_change(signal(line, name, reading)) for line in lines]
    if min(sparsity) == max(sparsity):
        return "-"
    slope, level = linear_regression(sparsity, changes)
    rest = [change - slope * own - level for change, own in zip(changes, sparsity, strict=True)]
    return _told_apart(lines, rest)


def _pairs(lines: Sequence[Line], name: str, reading: str) -> str:
    changes: dict[tuple[Any, ...], dict[bool, float]] = {}
    for line in lines:
        pair = changes.setdefault(tuple(line["cell"][part] for part in ("network", "data", "seed")), {})
        pair[is_overfitting(line)] = late_change(signal(line, name, reading))
    whole = [pair for pair in changes.values() if len(pair) == 2]
    return f"{sum(pair[True] > pair[False] for pair in whole)} of {len(whole)} pairs"


def draw_long(lines: Sequence[Line]) -> Figure:
    """The figure for the runs on all images."""
    return draw_panels(_long_runs(lines), (*_PANELS, ("isolated filters", "set_apart", "val", False)))


def draw_curves(lines: Sequence[Line]) -> Figure:
    """The paper's figure: losses and anomaly fraction over the epochs, overfitting and healthy, mean over the seeds."""
    return draw_panels(short_runs(lines), _PANELS)
