"""Tables of H2, made from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from statistics import mean, variance
from typing import Any

from recipes.experiments.common.tables import Line, group, markdown, spread
from recipes.experiments.h2.detection import SCORES
from recipes.experiments.h2.measure import READINGS

__all__ = [
    "LAST",
    "PROBES",
    "SHARE",
    "damage_in",
    "damage_table",
    "gradient_table",
    "layer_table",
    "leave_out_table",
    "measure_runs",
    "mislabelled_table",
    "network_table",
    "ratios_of",
    "scores_table",
    "tables",
]

Ratios = list[list[float | None]]
# Kind of run, probe, and what it is called where damaged images are looked for.
_DAMAGED = (
    ("measure", "val", "validation, none in training"),
    ("leave_out", "val", "validation, some in training"),
    ("leave_out", "train", "training"),
)
PROBES = (("train", "training"), ("val", "validation"))
LAST = -1  # of the measured epochs
_LONG = 30  # rows of a table
_EARLY = 2  # the first epochs
SHARE = "0.01"  # shown where there is room for one


def measure_runs(lines: Iterable[Line]) -> list[Line]:
    """The runs of the first kind."""
    return [line for line in lines if line["kind"] == "measure"]


def _groups(lines: Iterable[Line]) -> Iterator[tuple[str, str, list[Line], str, str]]:
    """Network, data set, runs, and the key and the name of a probe."""
    for (network, data), runs in group(measure_runs(lines), "network", "data").items():
        for key, name in PROBES:
            yield network, data, runs, key, name


def _with_damage(lines: Iterable[Line]) -> Iterator[tuple[str, dict[tuple[str, ...], list[dict[str, Any]]]]]:
    """The name of a probe with damaged images and, by network and data set, what was found there in each run."""
    for kind, probe, name in _DAMAGED:
        runs = group([line for line in lines if line["kind"] == kind], "network", "data")
        yield name, {key: [damage_in(line, probe) for line in some] for key, some in runs.items()}


def damage_in(line: Line, probe: str) -> dict[str, Any]:
    """What was found of the damaged images in a probe."""
    place = line if line["kind"] == "leave_out" else line["epochs"][LAST][probe]
    damage: dict[str, Any] = place["damage"]
    return damage[probe] if line["kind"] == "leave_out" else damage


def _near_best(run: Line) -> dict[str, Any]:
    """The measured epoch that is nearest to the one with the smallest validation loss."""
    losses = run["val_losses"]
    best = losses.index(min(losses)) + 1
    nearest: dict[str, Any] = min(run["epochs"], key=lambda epoch: abs(epoch["epoch"] - best))
    return nearest


def ratios_of(epochs: Iterable[dict[str, Any]], probe: str, what: str, reading: str, name: str = "all") -> Ratios:
    """Ratio and interval of a group of outlier samples in some measured epochs, of those in which it has any."""
    groups = [epoch[probe][reading]["gradients"].get(name, {}) for epoch in epochs]
    return [found[what] for found in groups if what in found]


def _compare(ratios: Ratios) -> str:
    """Mean and spread of ratios, and in how many runs the interval lies above or below 1."""
    if not ratios:
        return "-"
    above = sum(low is not None and low > 1 for _, low, _ in ratios)
    below = sum(high is not None and high < 1 for _, _, high in ratios)
    return f"{spread([ratio for ratio, _, _ in ratios])} ({above} above, {below} below, of {len(ratios)})"


def gradient_table(lines: Iterable[Line]) -> str:
    """For each network, data set and probe: have outlier samples larger gradients than the rest?"""
    rows = []
    for network, data, runs, key, name in _groups(lines):
        for reading in READINGS:
            best, end = [_near_best(run) for run in runs], [run["epochs"][LAST] for run in runs]
            last = [epoch[key][reading] for epoch in end]
            first, later = (
                [epoch for run in runs for epoch in run["epochs"] if (epoch["epoch"] <= _EARLY) == early]
                for early in (True, False)
            )
            rows.append(
                (
                    network,
                    data,
                    name,
                    reading,
                    len(runs),
                    spread([one["count"] for one in last], 1),
                    spread([one["gradients"]["all"]["n"] for one in last], 1),
                    *(_compare(ratios_of(epochs, key, "mean", reading)) for epochs in (first, later, best, end)),
                    _compare(ratios_of(end, key, "median", reading)),
                    spread([ratio for ratio, _, _ in ratios_of(end, key, "loss", reading)]),
                    spread([one["gradients"]["spearman"] for one in last]),
                )
            )
    header = (
        "network", "data", "probe", "reading", "seeds", "anomaly filters", "outlier samples",
        f"ratio of mean norms, epochs 1 to {_EARLY}", "later measured epochs", "epoch nearest to the best",
        "last epoch", "ratio of medians, last",
        "ratio of mean losses, last", "Spearman of votes and norm, last",
    )  # fmt: skip
    return markdown(header, rows)


def layer_table(lines: Iterable[Line]) -> str:
    """The same for the outlier samples of each layer, at the last epoch, over all data sets and seeds."""
    rows = []
    for (network,), runs in group(measure_runs(lines), "network").items():
        for key, name in PROBES:
            for reading in READINGS:
                last = [run["epochs"][LAST] for run in runs]
                gradients = [epoch[key][reading]["gradients"] for epoch in last]
                for layer in [layer for layer in gradients[0] if layer not in ("spearman", "all")]:
                    number = spread([found[layer]["n"] for found in gradients], 1)
                    ratios = [ratios_of(last, key, what, reading, layer) for what in ("mean", "own")]
                    rows.append((network, name, reading, layer, number, *map(_compare, ratios)))
    header = (
        "network", "probe", "reading", "layer", "its outlier samples", "ratio of mean norms",
        "of the layer's own gradients",
    )  # fmt: skip
    return markdown(header, rows)


def _found(results: Sequence[dict[str, Any]], score: int) -> str:
    """AUROC and average precision of a score over several results."""
    if results[0]["auroc"][score] is None:
        return "-"
    return (
        f"{spread([one['auroc'][score] for one in results])} / {mean(one['precision'][score] for one in results):.2f}"
    )


def mislabelled_table(lines: Iterable[Line]) -> str:
    """For each network, data set and probe: what finds wrong labels? AUROC and average precision."""
    rows: list[tuple[object, ...]] = []
    for network, data, runs, key, name in _groups(lines):
        last = [run["epochs"][LAST] for run in runs]
        for epochs, epoch in (([_near_best(run) for run in runs], "nearest to the best"), (last, "last")):
            found, paper = ([one[key][name]["mislabelled"] for one in epochs] for name in READINGS)
            hits = f"{mean(one['hit'] for one in found):.1f} of {mean(one['planted'] for one in found):.0f}"
            cells = [_found(found, score) for score in range(len(SCORES))]
            rows.append((network, data, name, epoch, hits, _found(paper, 0), *cells))
    return markdown(("network", "data", "probe", "epoch", "with votes", "paper's votes", *SCORES), rows)


def damage_table(lines: Iterable[Line]) -> str:
    """For each network, data set and probe: AUROC of the votes for each kind of damage, at 1% of the probe."""
    rows: list[tuple[object, ...]] = []
    probes = list(_with_damage(lines))
    entries = [entry for _, runs in probes for some in runs.values() for found in some for entry in found]
    shown = [entry for entry in dict.fromkeys(entries) if entry.endswith(f"/{SHARE}")]
    for name, runs in probes:
        for key, some in runs.items():
            found = [[one[entry]["auroc"][0] for one in some if entry in one] for entry in shown]
            rows.append((*key, name, len(some), *(spread(values) for values in found)))
    return markdown(("network", "data", "probe", "seeds", *(entry.partition("/")[0] for entry in shown)), rows)


def scores_table(lines: Iterable[Line]) -> str:
    """For each kind and share of damage and each probe: what finds it, over all networks, data sets and seeds."""
    rows: list[tuple[object, ...]] = []
    for name, runs in _with_damage(lines):
        everything = [found for some in runs.values() for found in some]
        for entry in dict.fromkeys(entry for found in everything for entry in found):
            kind, _, share = entry.rpartition("/")
            rows.append((name, kind, f"{100 * float(share):g}%", *_scores(everything, entry)))
    return markdown(("probe", "damage", "share", "with votes", *SCORES), rows)


def network_table(lines: Iterable[Line]) -> str:
    """The same for each network and data set, at 1% of the probe."""
    rows: list[tuple[object, ...]] = []
    for name, runs in _with_damage(lines):
        for key, some in runs.items():
            entries = [entry for entry in some[0] if entry.endswith(f"/{SHARE}")]
            rows += [(name, *key, entry.partition("/")[0], *_scores(some, entry)) for entry in entries]
    return markdown(("probe", "network", "data", "damage", "with votes", *SCORES), rows)


def _scores(found: Iterable[dict[str, Any]], entry: str) -> list[str]:
    """How many damaged images have votes, and how well every score finds them."""
    results = [one[entry] for one in found if entry in one]
    planted, hit = (mean(one[what] for one in results) for what in ("planted", "hit"))
    return [f"{hit:.1f} of {planted:.0f}", *(_found(results, score) for score in range(len(SCORES)))]


def _draw_noise(arms: Iterable[dict[str, Any]], what: str) -> float:
    """Standard deviation between trainings without different random samples, pooled over some arms."""
    return sqrt(mean(variance(one[what] for one in arm["random"]) for arm in arms))


def _gain(pairs: Sequence[dict[str, Any]], what: str, noise: float) -> str:
    """What leaving the outlier samples out gives over leaving random ones out, and the noise of that mean."""
    gains = [arm["outliers"][what] - mean(one[what] for one in arm["random"]) for arm in pairs]
    error = noise * sqrt((1 + 1 / len(pairs[0]["random"])) / len(pairs))
    return f"{spread(gains, 3)} (draws {error:.3f})"


def leave_out_table(lines: Iterable[Line]) -> str:
    """For each network and data set: the test loss and accuracy without the outlier samples, without random ones.

    Beside the spread over seeds stands the standard error that the draws of random samples alone give the mean: their
    variance is pooled over the runs and readings of a network and data set.
    """
    rows = []
    left_out = [line for line in lines if line["kind"] == "leave_out"]
    for (network, data), runs in group(left_out, "network", "data").items():
        both = [run[reading] for run in runs for reading in READINGS if "outliers" in run[reading]]
        for reading in READINGS:
            arms = [run[reading] for run in runs]
            pairs = [arm for arm in arms if "outliers" in arm]
            cells: list[str] = []
            for what in ("best_loss", "last_loss", "best_acc", "last_acc"):
                cells.append(spread([run["all"][what] for run in runs], 3))
                cells.append(_gain(pairs, what, _draw_noise(both, what)) if pairs else "-")
            counts = [spread([arm[name] for arm in arms], 1) for name in ("left_out", "wrong", "damaged")]
            rows.append((network, data, reading, f"{len(pairs)} of {len(runs)}", *counts, *cells))
    header = ["network", "data", "reading", "seeds with 20 or more", "outlier samples", "mislabelled", "damaged"]
    for name in ("test loss at the best epoch", "at the end", "accuracy at the best epoch", "at the end"):
        header += [name, "without outlier samples, less without random ones (standard error from draws)"]
    return markdown(header, rows)


def tables(lines: Sequence[Line]) -> str:
    """All tables with a heading each; those without lines are left out."""
    measured, left_out = bool(measure_runs(lines)), any(line["kind"] == "leave_out" for line in lines)
    damage = measured or left_out
    parts = (
        ("Gradients of outlier samples", gradient_table, measured),
        ("Gradients, layer by layer", layer_table, measured),
        ("Mislabelled samples: AUROC / average precision", mislabelled_table, measured),
        ("Damaged images, 1% of the probe: AUROC of the votes", damage_table, damage),
        ("Damaged images, 1% of the probe: AUROC / average precision of all scores", network_table, damage),
        ("Damaged images, all shares, over all networks: AUROC / average precision", scores_table, damage),
        ("Outlier samples left out of training", leave_out_table, left_out),
    )
    return "\n\n".join(f"### {title}\n\n{_folded(table(lines))}" for title, table, there in parts if there)


def _folded(table: str) -> str:
    """A table, out of sight until it is asked for if it is long; MkDocs takes `markdown="1"` to read it as a table."""
    rows = table.count("\n") - 1
    return f'<details markdown="1"><summary>{rows} rows</summary>\n\n{table}\n\n</details>' if rows > _LONG else table
