"""What finds images that do not belong: one row for each probe, kind of damage, share and score, and its pivots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

import pandas as pd

from recipes.experiments.tables.writer import Frame, runs, spread

__all__ = ["KINDS", "SCORES", "by_kind", "by_network", "measures", "results", "trained_on", "wins"]

SCORES = ("score", "votes", "confidence", "loss", "energy", "neighbour", "mahalanobis", "forest", "pixel neighbour",
          "pixel residual", "cleanvision")  # fmt: skip
KINDS = ("noise", "salt_and_pepper", "black", "over_exposed", "blurred", "inverted", "foreign", "mixed")
_MEASURES = {
    "auroc": "AUROC",
    "precision": "average precision",
    "false_positives": "false positives at 95% recall",
}
_TITLES = {"score": "outlier score"} | {name: name for name in SCORES[1:]}
_CHOSEN_ON = 0  # seed, of two networks on CIFAR-10


def results() -> Frame:
    """One row for each run, kind of damage, share and score, with the three measures; None where there is none."""
    rows = [
        {**{name: run[name] for name in ("network", "data", "condition", "seed")}, "run": run.line["key"],
         "kind": kind, "share": float(share), "score": score,
         **{measure: found[measure][place] for measure in _MEASURES}}
        for _, run in runs("outliers").iterrows()
        for (kind, _, share), found in ((key.partition("/"), found) for key, found in run.line["probe"].items())
        for place, score in enumerate(SCORES)
    ]  # fmt: skip
    found = pd.DataFrame(rows)
    found["kind"] = pd.Categorical(found.kind, KINDS, ordered=True)
    found["held_out"] = ~(found.network.isin(["lenet5", "simple_cnn"]) & (found.data == "cifar10"))
    return found


def _mean(values: Iterable[float]) -> str:
    found = [value for value in values if value == value]  # no NaN
    return f"{mean(found):.2f}" if found else "-"


def _pivot(found: Frame, rows: Sequence[str], measure: str = "auroc") -> Frame:
    """The mean of a measure of each score, by rows."""
    pivot = found.pivot_table(measure, list(rows), "score", _mean, fill_value="-", observed=True)
    return pivot.reindex(columns=list(SCORES), fill_value="-").rename(columns=_TITLES).reset_index()


def by_kind() -> Frame:
    """The mean AUROC of every score for each kind of damage, and for each share, of the held-out runs."""
    found = results().query("held_out")
    shares = _pivot(found, ["share"]).rename(columns={"share": "damage"})
    shares["damage"] = [f"{100 * share:g}% of the probe" for share in shares.damage]
    kinds = _pivot(found, ["kind"]).rename(columns={"kind": "damage"}).astype({"damage": str})
    return pd.concat([kinds, shares], ignore_index=True)


def measures() -> Frame:
    """Every measure of every score, mean over all held-out runs; of the AUROC also the spread of the runs' means."""
    found = results().query("held_out")
    rows = [[label, *(_mean(found[found.score == score][name]) for score in SCORES)] for name, label in
            _MEASURES.items()]  # fmt: skip
    by_run = found.dropna(subset="auroc").groupby(["score", "run"]).auroc.agg(lambda own: mean(own))
    rows.insert(1, ["AUROC by training", *(spread(by_run[score]) for score in SCORES)])
    return pd.DataFrame(rows, columns=["measure", *_TITLES.values()])


def by_network() -> Frame:
    """For each network, data set and condition the mean AUROC of every score, over the kinds and shares."""
    found, some, rows = results(), runs("outliers"), []
    for key, own in some.groupby(["network", "data", "condition"], observed=True):
        for chosen in (True, False):
            part = own[(own.seed == _CHOSEN_ON) == chosen]
            if len(part):
                losses = (f"{mean(line[what]['loss'] for line in part.line):.2f}" for what in ("train", "val"))
                mine = found[found.run.isin([line["key"] for line in part.line])]
                cells = [_mean(mine[mine.score == score].auroc) for score in SCORES]
                rows.append((*key, ", ".join(map(str, sorted(set(part.seed)))), " / ".join(losses), *cells))
    header = ["network", "data", "condition", "seeds", "loss, training / validation", *_TITLES.values()]
    return pd.DataFrame(rows, columns=header)


def wins() -> Frame:
    """For each data set and kind of damage: the outlier score, and the rivals that do better, best first.

    Two scores are compared in the probes in which both were measured.
    """
    rows = []
    for (data, kind), own in results().query("held_out").groupby(["data", "kind"], observed=True):
        areas = own.pivot_table("auroc", ["run", "share"], "score", dropna=False)
        better = {}
        for rival in SCORES[1:]:
            pairs = areas[[rival, "score"]].dropna() if rival in areas else areas[:0]
            if len(pairs) and mean(pairs[rival]) > mean(pairs.score):
                better[rival] = mean(pairs[rival])
        ranked = sorted(better, key=lambda name: -better[name])
        names = ", ".join(f"{name} {better[name]:.2f}" for name in ranked) or "none"
        rows.append((data, kind, _mean(areas.score), names))
    return pd.DataFrame(rows, columns=["data", "damage", "outlier score", "what does better"])


def trained_on() -> Frame:
    """What finds the damaged images of all kinds among those trained on: AUROC and average precision."""
    some, rows = runs("outliers"), []
    for key, own in some[[bool(line["trained_on"]) for line in some.line]].groupby(["network", "data"]):
        found = [line["trained_on"]["mixed"] for line in own.line]
        planted = ", ".join(f"{one['planted']} of {size}" for one, size in zip(found, own.train_size, strict=True))
        cells = []
        for place, score in enumerate(SCORES):
            columns = [[one[name][place] for one in found] for name in ("auroc", "precision")]
            if score != "votes":
                cells.append("-" if None in columns[0] else " / ".join(_mean(column) for column in columns))
        rows.append((*key, planted, *cells))
    header = ["network", "data", "damaged", *(title for name, title in _TITLES.items() if name != "votes")]
    return pd.DataFrame(rows, columns=header)
