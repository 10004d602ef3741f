"""The strangest images of real data, the verdict on each, and the number of each kind."""

from __future__ import annotations

import pandas as pd

from recipes.experiments.store import RESULTS, read_lines
from recipes.experiments.tables.writer import Frame

KINDS = ("wrong label", "two objects", "cropped", "broken", "unusual but fine")
_SHOWN = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}

# By position, judged once by a vision model on images enlarged eight times; the rest of the 24 are unusual but fine.
JUDGED: dict[str, dict[str, tuple[int, ...]]] = {
    "fashion_mnist": {"two objects": (26307, 54600, 27984, 2062, 1182, 36463, 56079, 44011, 37650, 46567)},
    "cifar10": {"two objects": (54373,), "broken": (44226, 49079, 32304, 13223, 17175, 7243)},
}


def images() -> Frame:
    """List the images, the strangest first."""
    rows = []
    for line in read_lines(RESULTS / "found.jsonl"):
        kinds = {position: kind for kind, positions in JUDGED[line["key"]].items() for position in positions}
        rows += [
            {"data": _SHOWN[line["key"]], **row, "verdict": kinds.get(row["position"], KINDS[-1])}
            for row in line["top"]
        ]
    return pd.DataFrame(rows)


def counts() -> Frame:
    """Count the images of each kind in each data set."""
    rows = images()
    return pd.crosstab(rows.verdict, rows.data).reindex(index=KINDS, fill_value=0).reset_index()
