"""The table of samples: a row for each by position, and columns, which are defined here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_anomaly.scores.views import VIEWS, SampleView

if TYPE_CHECKING:
    from pandas import DataFrame, Series


class Column(NamedTuple):
    """A column of the table of samples."""

    kind: type  # of its values
    about: str  # a sentence, with the unit


_OF_VIEWS = {
    "look": "How unlike those of the others its pixels are",
    "content": "How unlike the others, or the others of its class, is what the network sees in it",
    "label": "How much it looks like another class than its own",
}
COLUMNS = {
    "name": Column(str, "Its file in the data set, or `image` and its position."),
    "path": Column(str, "The absolute path of its file."),
    "split": Column(str, "The part of the data that it is of, such as train or val."),
    "class": Column(str, "The class that it is filed or labeled under."),
    "score": Column(float, "The larger of its look and content scores (nats); infinite if it cannot be judged."),
    "p_value": Column(float, "Probability that an ordinary image has at least this score."),
}
for _view, _about in _OF_VIEWS.items():
    COLUMNS |= {
        f"{_view}_score": Column(float, f"{_about} (nats); NaN if this is unknown."),
        f"{_view}_p_value": Column(float, "Probability that an ordinary image has at least this score."),
        f"{_view}_reason": Column(str, "Why this score is large, in words."),
    }
COLUMNS |= {
    "looks_like": Column(
        str, "The class that it looks like most; of a training image, the one that the network prefers to its label."
    ),
    "clear": Column(bool, "Whether it clearly looks like another class than its own."),
    "move_to": Column(str, "Where its file would be in that class; empty if there is no such folder."),
    "nearest": Column(
        object, "Positions of the most similar images of its class, and of the class that it looks like."
    ),
    "votes": Column(int, "Number of anomaly filters in which it is an outlier."),
    "doubt": Column(float, "How doubtful its training label is: two mean margins, each in standard deviations, added."),
    "left_out": Column(
        float, "Mean margin of another class over its label, as predicted from the other images, about -1 to 1."
    ),
    "since": Column(object, "The epoch since which the network has preferred another class at each validation."),
    "in_doubt": Column(object, "Whether its label is among those that seem to be wrong; None if not measured."),
    "copy_of": Column(str, "The name of the image that it is a copy of."),
    "also_in": Column(str, "The other classes that identical images are filed under."),
    "width": Column(int, "Width of its file (pixels); 0 if this is unknown."),
    "height": Column(int, "Height of its file (pixels)."),
    "bytes": Column(int, "Size of its file (bytes)."),
    "modified": Column(float, "When its file was modified, as `os.stat` tells it (seconds)."),
    "faults": Column(str, "Whether it is dark, plain, tiny and the like, in words separated by `; `."),
    "error": Column(str, "Why it cannot be read."),
    "verdict": Column(str, "What a reader of a page said: `ticked`, `move` or `right`."),
}
_UNKNOWN: dict[type, Any] = {str: "", float: np.nan, int: 0, bool: False}
_DTYPES: dict[type, Any] = {float: np.float64, int: np.int64, bool: np.bool_}


def sample_table(
    columns: Mapping[str, Any], positions: Sequence[int], folder: str = "", kind: str = "image"
) -> DataFrame:
    """Make the table of the samples at some positions from the columns that are known.

    `name` is of files in a `folder`; without it, names are of this `kind`. Classes, errors and verdicts are empty where
    they are not given.
    """
    from pandas import DataFrame, Index

    names, count = columns.get("name"), len(positions)
    known: dict[str, Any] = dict.fromkeys(("path", "class", "error", "verdict"), [""] * count) | dict(columns)
    if names is None:
        known["name"] = [f"{kind} {position}" for position in positions]
    else:
        known["path"] = [os.path.abspath(os.path.join(folder, name)) for name in names]
    index = Index(positions, name="position")
    return DataFrame({name: as_column(name, known[name]) for name in COLUMNS if name in known}).set_axis(index)


def as_column(name: str, values: Any) -> Series:
    """Return the values of a column in its type."""
    from pandas import Series

    values = values.numpy() if isinstance(values, Tensor) else values
    return Series(values, dtype=_DTYPES.get(COLUMNS[name].kind, object))


def with_rows(samples: DataFrame, others: DataFrame) -> DataFrame:
    """Add rows at other positions, in which the columns that they lack are unknown."""
    from pandas import DataFrame, concat

    unknown = {name: as_column(name, [_UNKNOWN.get(COLUMNS[name].kind)] * len(others)) for name in samples}
    filled = {name: others.get(name, column.set_axis(others.index)) for name, column in unknown.items()}
    return concat([samples, DataFrame(filled)]) if len(others) else samples


def view_columns(views: Mapping[str, SampleView]) -> dict[str, Any]:
    """Return the columns of scores and reasons."""
    scores = {f"{name}_score": view.scores.double() for name, view in views.items()}
    return scores | {f"{name}_reason": view.reasons for name, view in views.items()}


def views_of(samples: DataFrame) -> list[str]:
    """Return the views that samples have scores of."""
    return [view for view in VIEWS if f"{view}_score" in samples]


def column_tensor(samples: DataFrame, name: str) -> Tensor:
    """Return a column of numbers `(N,)`; NaN if it is missing."""
    if name not in samples:
        return torch.full((len(samples),), torch.nan, dtype=torch.float64, device="cpu")
    return torch.tensor(samples[name].to_numpy(), device="cpu")


def sample_reasons(cells: Mapping[str, Any]) -> dict[str, str]:
    """Return why a sample is odd by view, the larger score first, from the cells of its row."""
    if cells["error"]:
        return {"file": f"cannot be read: {cells['error']}"}
    views = [view for view in VIEWS if cells.get(f"{view}_reason")]
    reasons = {view: cells[f"{view}_reason"] for view in sorted(views, key=lambda view: -cells[f"{view}_score"])}
    if cells.get("also_in"):
        reasons["label"] = f"filed under {cells['class']}, also under {cells['also_in']}"
    return reasons


def reasons_in_line(cells: Mapping[str, Any]) -> str:
    """Return the `sample_reasons` in one line."""
    return "; ".join(f"{view}: {reason}" for view, reason in sample_reasons(cells).items())


def first_by(samples: DataFrame, column: str) -> list[int]:
    """Return the positions of the samples with finite values of a column, the largest first."""
    values = samples[column].to_numpy()
    order = np.argsort(-values, kind="stable")
    positions: list[int] = samples.index.to_numpy()[order[np.isfinite(values[order])]].tolist()
    return positions
