"""The labels in the batches of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

_LABELS = {"label", "labels", "target", "targets", "y", "class", "classes"}  # what labels are usually called


class BatchLabels:
    """Collects what may be the labels of images in batches, and decides which of it is.

    A label is one integer for each image, or one floating-point number that is whole where a batch has no integers.
    Where it has several such columns, one that is called a label counts, numbers that are all different count as an
    index, and a column that equals the data set's `targets` is the label.
    """

    def __init__(self) -> None:
        self._columns: dict[str, dict[int, float]] = {}  # values by position, of each column of whole numbers
        self._floats: set[str] = set()  # columns of floating-point numbers
        self._chosen: str | None = None
        self._settled = False
        self.problem = ""  # why labels are unknown although there are some
        self.renamed = False  # whether most are others than the data set's `targets`, so that it does not name them

    def add(self, positions: Sequence[int], batch: Any) -> None:
        """Add a batch of the items at `positions`."""
        for name, values in named_tensors(batch):
            if values.shape not in ((len(positions),), (len(positions), 1)) or values.is_complex():
                continue
            if values.is_floating_point():
                self._floats.add(name)
            self._columns.setdefault(name, {}).update(zip(positions, values.flatten().tolist(), strict=True))

    def at(self, positions: Iterable[int], targets: Sequence[int] | None) -> list[int | None]:
        """Return the labels at some positions, or the data set's `targets` where batches have none; None if unknown.

        The first call decides which column counts. Negative numbers, such as -100, stand for unknown labels.
        """
        if not self._settled:
            self._settled, self._chosen = True, self._choose_column(targets)
        if self._chosen is not None:
            values = [self._columns[self._chosen].get(position) for position in positions]
            found = [None if value is None or not math.isfinite(value) else int(value) for value in values]
        else:
            found = [None if targets is None or self.problem else targets[position] for position in positions]
        return [None if label is None or label < 0 else label for label in found]

    def _choose_column(self, targets: Sequence[int] | None) -> str | None:
        """Return the column of labels; None without one, or with a `problem` if there are several."""

        def is_called_so(name: str, values: Mapping[int, float]) -> bool:
            return name.rpartition(".")[2] in _LABELS

        def repeats(name: str, values: Mapping[int, float]) -> bool:
            return len({*values.values()}) < len(values)

        def equals_targets(name: str, values: Mapping[int, float]) -> bool:
            return targets is not None and all(targets[place] == value for place, value in values.items())

        columns = {name: values for name, values in self._columns.items() if name not in self._floats}
        columns = columns or {name: values for name, values in self._columns.items() if _all_whole(values.values())}
        for decides in (is_called_so, repeats, equals_targets):
            if len(columns) > 1:
                columns = {name: values for name, values in columns.items() if decides(name, values)} or columns
        if len({tuple(values.items()) for values in columns.values()}) > 1:
            names = ", ".join(f"`{name}`" for name in columns)
            self.problem = f"each item has several integers, {names}, any of which may be its label"
            return None
        chosen = next(iter(columns), None)
        if chosen is not None and targets is not None:
            equal = sum(targets[place] == value for place, value in columns[chosen].items())
            self.renamed = 2 * equal < len(columns[chosen])
        return chosen


def _all_whole(values: Iterable[float]) -> bool:
    return all(float(value).is_integer() for value in values if math.isfinite(value))


def name_labels(labels: Iterable[Any], names: Sequence[str]) -> list[str | None]:
    """Return labels by name, if they are places of names, or as they are; None for unknown and empty ones."""
    name_of = dict(enumerate(names))
    return [None if label is None else str(name_of.get(label, label)) or None for label in labels]


def named_tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested mappings, sequences and dataclasses, with the keys or places that lead to them."""
    if isinstance(values, Tensor):
        yield name, values
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        parts = values.items()
    elif is_dataclass(values) and not isinstance(values, type):
        parts = ((field.name, getattr(values, field.name)) for field in fields(values))
    elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        parts = zip(getattr(values, "_fields", range(len(values))), values, strict=True)
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}" if name else str(key))
