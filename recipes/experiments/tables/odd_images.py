"""How well each score finds odd images: means over kinds and networks; see `recipes.experiments.odd_images`."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import mean
from typing import Any

import pandas as pd

from recipes.common.damage import GROUPS
from recipes.experiments.measures.rivals import RIVALS
from recipes.experiments.odd_images import CHOSEN_CLASSES, CHOSEN_KINDS
from recipes.experiments.store import RESULTS, read_lines
from recipes.experiments.tables.writer import Frame

OURS = ("outlier score", "view: pixels", "view: features", "view: logits", "features and logits", "view: filters")
LEADS = ("lead 1", "lead 2")
SCORES = (*OURS, *LEADS, *RIVALS)
QUESTIONS = {"probe": "probe only", "reference": "with a reference"}
_SHOWN = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
_CHOSEN_CLASSES = [f"class {number}" for number in CHOSEN_CLASSES]


def results() -> Frame:
    """List AUROC, average precision and share among the first 2n for each network, question, kind and score.

    `chosen` says whether the score was chosen with that kind or class.
    """
    rows = []
    for line in read_lines(RESULTS / "outliers.jsonl"):
        cell = line["cell"]
        for question in QUESTIONS:
            for kind, scores in line[question].items():
                chosen = kind in CHOSEN_KINDS or (cell["data"] == "fashion_mnist" and kind in _CHOSEN_CLASSES)
                start = (cell["network"], cell["data"], question, kind, chosen)
                rows += [(*start, score, *values) for score, values in scores.items()]
    header = ["network", "data", "question", "kind", "chosen", "score", "auroc", "precision", "first"]
    return pd.DataFrame(rows, columns=header)


def _cells(found: Frame, column: Callable[[Frame], Any]) -> Frame:
    """Format the mean measures of every score, in a column for each group."""
    groups = found.assign(column=column(found)).groupby(["column", "score"], sort=False)
    means = groups[["auroc", "precision", "first"]].mean()
    text = means.apply(lambda row: f"{row.auroc:.3f} / {row.precision:.3f} / {row['first']:.2f}", axis=1)
    table = text.unstack("column")
    return table.reindex([score for score in SCORES if score in table.index]).rename_axis("score").reset_index()


def _damage(found: Frame) -> Frame:
    return found[~found.kind.str.startswith("class") & ~found.chosen & (found.network != "small_vgg")]


def _title(found: Frame) -> Any:
    return found.question.map(QUESTIONS) + ", " + found.data.map(_SHOWN)


def summary() -> Frame:
    """For each score, question and data set: the mean over two networks and the kinds that it was not chosen on."""
    return _cells(_damage(results()), _title)


def by_kind() -> Frame:
    """For each question, data set and kind: the mean of every score over both networks."""
    found = results()
    found = found[~found.kind.str.startswith("class") & (found.network != "small_vgg")]
    found["group"] = found.kind.map(_GROUP_OF)
    keys = ["question", "data", "group", "kind", "chosen", "score"]
    means = found.groupby(keys, sort=False)[["auroc", "precision"]].mean()
    text = means.apply(lambda row: f"{row.auroc:.2f} / {row.precision:.2f}", axis=1).unstack("score")
    return text[[score for score in SCORES if score in text]].reset_index()


def unknown() -> Frame:
    """For each question and data set: the mean of every score over the classes that were left out of training.

    For Fashion-MNIST all ten classes, and the four that the score was not chosen on.
    """
    found = results()
    found = found[found.kind.str.startswith("class")]
    held_out = found[~found.chosen & (found.data == "fashion_mnist")]
    tables = _cells(found, _title), _cells(held_out, lambda part: _title(part) + ", held out")
    return tables[0].merge(tables[1], on="score", how="left")


def little_data() -> Frame:
    """The columns of `summary` for a small network trained on 4,000 images."""
    found = results()
    return _cells(found[(found.network == "small_vgg") & ~found.chosen], _title)


def _wilson(count: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's 95% interval of a share."""
    centre, wide = (count + z * z / 2) / (n + z * z), z * sqrt(count * (n - count) / n + z * z / 4) / (n + z * z)
    return centre - wide, centre + wide


def false_discoveries() -> Frame:
    """False discoveries for each data set, reference, number of planted images and of unreadable files."""
    rows: dict[tuple[Any, ...], list[list[int]]] = {}
    for line in read_lines(RESULTS / "outliers.jsonl"):
        if line["cell"]["network"] == "small_vgg":
            continue
        for reference, cells in line.get("draws", {}).items():
            for planted, draws in cells.items():
                for place, broken in enumerate((0, 30, 100)):
                    key = _SHOWN[line["cell"]["data"]], reference, planted, broken
                    rows.setdefault(key, []).extend(draw[place] for draw in draws)
    table = []
    for key, draws in sorted(rows.items()):
        wrong = sum(found > right for found, right in draws)
        low, high = _wilson(wrong, len(draws))
        rate = mean((found - right) / max(found, 1) for found, right in draws)
        share = f"{wrong / len(draws):.2f} ({low:.2f} to {high:.2f})"
        table.append((*key, f"{wrong} of {len(draws)}", share, f"{rate:.3f}"))
    header = ["data", "reference", "planted", "unreadable", "reports with another image", "share (95% interval)",
              "false discovery rate"]  # fmt: skip
    return pd.DataFrame(table, columns=header)
