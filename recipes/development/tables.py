"""How well each score finds odd images; see `recipes.development.odd_images`."""

from __future__ import annotations

import pandas as pd

from recipes.development.odd_images import FINE_TUNED
from recipes.development.rivals import RIVALS
from recipes.experiments.store import RESULTS, read_lines
from recipes.experiments.tables.writer import Frame

SCORES = ("score", "content", "look", *RIVALS["content"], *RIVALS["look"])
_DATA = {"photographs": "photographs", "cifar10": "CIFAR-10 (JPEG)"}
_DATA |= dict.fromkeys(FINE_TUNED, "fine-tuned")


def results() -> Frame:
    """List AUROC and average precision of each network, planted set and score."""
    rows = []
    for line in read_lines(RESULTS / "outliers.jsonl"):
        for planted in line["sets"]:
            among = "" if planted["among"] == "ordinary" else f" among {planted['among']}"
            odd = planted["odd"]  # damaged images have the kind of damage and the folder as name
            name = (odd if planted["question"] == "content" else odd.removesuffix(f" {planted['among']}")) + among
            start = planted["question"], _DATA[line["cell"]["data"]], line["cell"]["network"], name, planted["chosen"]
            rows += [(*start, score, *values) for score, values in planted["scores"].items()]
    header = ["question", "data", "network", "planted", "chosen", "score", "auroc", "precision"]
    return pd.DataFrame(rows, columns=header)


def summary() -> Frame:
    """Average precision and AUROC of each score by question and data, means over sets that chose nothing."""
    found = results()
    found = found[~found.chosen]
    means = found.groupby(["question", "data", "score"], sort=False)[["precision", "auroc"]].mean()
    text = means.apply(lambda row: f"{row.precision:.2f} / {row.auroc:.2f}", axis=1).unstack(["question", "data"])
    text.columns = [f"{question}, {data}" for question, data in text.columns]
    return text.reindex(SCORES).fillna("-").rename_axis("score").reset_index()


def by_set() -> Frame:
    """Average precision of each score in every set, mean over the networks of its data."""
    found = results()
    keys = ["question", "data", "planted", "chosen", "score"]
    text = found.groupby(keys, sort=False).precision.mean().map("{:.2f}".format).unstack("score")
    return text[list(SCORES)].fillna("-").reset_index()


def p_values() -> Frame:
    """The share of ordinary images with small p-values, by a reference of 100 images."""
    rows = [
        (line["key"], view, *(f"{share:.3f}" for share in shares))
        for line in read_lines(RESULTS / "outliers.jsonl")
        for view, shares in line["p_values"].items()
    ]
    return pd.DataFrame(rows, columns=["network", "score", "p <= 0.05", "p <= 0.1"])
