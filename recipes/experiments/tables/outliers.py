"""What finds images that do not belong: one row for each run, question, kind of damage, share and score, and pivots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import sqrt
from statistics import mean

import pandas as pd

from recipes.common.damage import GROUPS
from recipes.experiments.measures.rivals import RIVALS
from recipes.experiments.spec import CHOSEN_KINDS
from recipes.experiments.tables.writer import Frame, runs, spread

OURS = ("outlier score", "view: pixels", "view: filters", "view: classes", "votes")
SCORES = (*OURS[:-1], *RIVALS, OURS[-1])
QUESTIONS = {"probe": "probe only", "reference": "training images too", "trained_on": "among training images"}
_SHOWN = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}


def results() -> Frame:
    """One row for each run, question, kind of damage, share and score, with the mean AUROC of its probes.

    Without the kinds that the score was chosen on, and of the runs in which rivals were measured as well. The questions
    are those of `measures.outliers`; only the first one has shares.
    """
    rows, some = [], runs("outliers").query("kind != 'found'")
    both = some.groupby(["network", "data", "condition", "seed"], observed=True).kind.transform("nunique") == 2
    for _, run in some[both].iterrows():
        for question in QUESTIONS:
            for kind, cells in run.line.get(question, {}).items():
                for share, scores in (cells if question == "probe" else {"": cells}).items():
                    rows += [(run.network, run.data, run.seed, question, kind, _GROUP_OF[kind], share, score,
                              mean(values) if question == "probe" else values)
                             for score, values in scores.items()]  # fmt: skip
    header = ["network", "data", "seed", "question", "kind", "group", "share", "score", "auroc"]
    found = pd.DataFrame(rows, columns=header)
    found["group"] = pd.Categorical(found.group, list(GROUPS), ordered=True)
    return found[~found.kind.isin(CHOSEN_KINDS)]


def _means(found: Frame, by: Sequence[str]) -> Frame:
    """The mean AUROC of every score by other columns: of the shares of a kind, of the kinds, and of the runs."""
    own = list(dict.fromkeys([*by, "network", "data", "seed", "score"]))
    kinds = found.groupby(list(dict.fromkeys([*own, "kind"])), observed=True).auroc.mean().reset_index()
    return kinds.groupby(own, observed=True).auroc.mean().reset_index()


def summary() -> Frame:
    """For each score, question and data set: the mean over the kinds of damage, and the spread of the runs."""
    means = _means(results(), ["question", "data"]).groupby(["question", "data", "score"], observed=True).auroc
    table = means.agg(spread).unstack("score").T
    order = [*product(QUESTIONS, _SHOWN)]
    table = table.loc[list(SCORES), order].fillna("-")
    table.columns = [f"{QUESTIONS[question]}, {_SHOWN[data]}" for question, data in order]
    return table.rename_axis("score").reset_index()


def _pivot(found: Frame, by: Sequence[str]) -> Frame:
    pivot = _means(found, by).pivot_table("auroc", list(by), "score", observed=True)
    return pivot[list(SCORES)].map(lambda value: "-" if value != value else f"{value:.2f}").reset_index()


def by_group() -> Frame:
    """For each question and group of kinds, on each data set: the mean of our score, and the best rival's."""
    rows = []
    for (question, group), some in results().groupby(["question", "group"], observed=True):
        row = [QUESTIONS[question], group]
        for data in _SHOWN:
            means = _means(some[some.data == data], ["group"]).groupby("score").auroc.mean()
            rivals = means.drop(list(OURS), errors="ignore")
            row += [f"{means['outlier score']:.2f}", f"{rivals.max():.2f} ({rivals.idxmax()})"]
        rows.append(row)
    columns = [f"{name}, {what}" for name in _SHOWN.values() for what in ("outlier score", "best rival")]
    return pd.DataFrame(rows, columns=["given", "damage", *columns])


def by_kind() -> Frame:
    """For each question, data set and kind: the mean of every score over the networks."""
    return _pivot(results(), ["question", "data", "group", "kind"])


def by_network() -> Frame:
    """For each question, network, data set and seed: the mean of every score over the kinds."""
    return _pivot(results(), ["question", "network", "data", "seed"])


def power() -> Frame:
    """For each data set, group and share: how many damaged images `find_outliers` finds, and how many others.

    With training images as the reference, at a false discovery rate of 10%.
    """
    rows = []
    for _, run in runs("outliers").query("kind == 'scores'").iterrows():
        rows += [
            (run.data, _GROUP_OF[kind], f"{100 * float(share):g}%", right / planted, found - right)
            for kind, cells in run.line.get("found", {}).items()
            for share, probes in cells.items()
            for found, right, planted in probes["found"]
            if kind not in CHOSEN_KINDS
        ]
    found = pd.DataFrame(rows, columns=["data", "damage", "share", "found of the damaged", "others found by probe"])
    found["damage"] = pd.Categorical(found.damage, list(GROUPS), ordered=True)
    means = found.groupby(["data", "damage", "share"], observed=True).mean().map("{:.2f}".format)
    return means.reset_index()


def _wilson(count: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    centre, wide = (count + z * z / 2) / (n + z * z), z * sqrt(count * (n - count) / n + z * z / 4) / (n + z * z)
    return centre - wide, centre + wide


def false_discoveries() -> Frame:
    """For each data set, reference and number of planted images: how many of the draws report another image."""
    rows = []
    for _, run in runs("outliers").query("kind == 'found'").iterrows():
        for reference, cells in run.line["draws"].items():
            for planted, draws in cells.items():
                wrong = sum(found > right for found, right in draws)
                low, high = _wilson(wrong, len(draws))
                share = f"{wrong / len(draws):.2f} ({low:.2f} to {high:.2f})"
                rate = mean((found - right) / max(found, 1) for found, right in draws)
                row = _SHOWN[run.data], reference, planted, f"{wrong} of {len(draws)}", share, f"{rate:.3f}"
                rows.append(row)
    header = ["data", "reference", "planted", "reports with another image", "share (95% interval)",
              "false discovery rate"]  # fmt: skip
    return pd.DataFrame(rows, columns=header)
