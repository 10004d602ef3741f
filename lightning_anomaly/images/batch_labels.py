"""The labels in the batches of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_anomaly.images.batch_tensors import named_tensors
from lightning_anomaly.images.targets import Column

_LABELS = {"label", "labels", "target", "targets", "y", "class", "classes"}  # what labels are usually called


class BatchLabels:
    """Collects what may be the labels of images in batches, and decides which of it is.

    A label is one integer for each image, or one floating-point number that is whole where a batch has no integers.
    Where it has several such columns, one that is called a label counts, numbers that are all different count as an
    index, and a column that equals the data set's `targets` is the label.
    """

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}  # by name
        self._chosen: str | None = None
        self._settled = False
        self.problem = ""  # why labels are unknown although there are some
        self.renamed = False  # whether most are others than the data set's `targets`, so that it does not name them

    def add(self, positions: Sequence[int], batch: Any, images: Tensor | None) -> None:
        """Add a batch of the items at `positions`, except its `images`."""
        for name, tensor in named_tensors(batch):
            numbers = tensor.ndim and len(tensor) == len(positions) and tensor.numel() and not tensor.is_complex()
            if tensor is not images and numbers:
                known = Column(f"{tensor.dtype} of shape {tuple(tensor.shape[1:])}", tensor.is_floating_point())
                self.columns.setdefault(name, known).add(tensor.detach(), positions)

    def at(self, positions: Iterable[int], targets: Sequence[int] | None) -> list[int | None]:
        """Return the labels at some positions, or the data set's `targets` where batches have none; None if unknown.

        The first call decides which column counts. Negative numbers, such as -100, stand for unknown labels.
        """
        if not self._settled:
            self._settled, self._chosen = True, self._choose_column(targets)
        if self._chosen is not None:
            values = [self.columns[self._chosen].values.get(position) for position in positions]
            found = [None if value is None or not math.isfinite(value) else int(value) for value in values]
        else:
            found = [None if targets is None or self.problem else targets[position] for position in positions]
        return [None if label is None or label < 0 else label for label in found]

    def _choose_column(self, targets: Sequence[int] | None) -> str | None:
        """Return the column of labels; None without one, or with a `problem` if there are several."""

        def rank(name: str, values: Mapping[int, float]) -> tuple[bool, bool, bool]:
            equal = targets is not None and all(targets[place] == value for place, value in values.items())
            return name.rpartition(".")[2] in _LABELS, len({*values.values()}) < len(values), equal

        single = {name: column for name, column in self.columns.items() if column.single}
        integers = {name: column for name, column in single.items() if not column.floating}
        columns = {name: column.values for name, column in (integers or single).items() if column.all_whole}
        ranks = {name: rank(name, values) for name, values in columns.items()}
        columns = {name: values for name, values in columns.items() if ranks[name] == max(ranks.values())}
        if len({tuple(values.items()) for values in columns.values()}) > 1:
            names = ", ".join(f"`{name}`" for name in columns)
            self.problem = f"each item has several integers, {names}, any of which may be its label"
            return None
        chosen = next(iter(columns), None)
        if chosen is not None and targets is not None:
            equal = sum(targets[place] == value for place, value in columns[chosen].items())
            self.renamed = 2 * equal < len(columns[chosen])
        return chosen


def name_labels(labels: Iterable[Any], names: Sequence[str]) -> list[str | None]:
    """Return labels by name, if they are places of names, or as they are; None for unknown and empty ones."""
    name_of = dict(enumerate(names))
    return [None if label is None else str(name_of.get(label, label)) or None for label in labels]
