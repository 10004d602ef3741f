"""Find the tensors, images and labels in a nested batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LABELS = {"label", "labels", "target", "targets", "y", "class", "classes"}  # what labels are usually called
_COLUMNS = 64  # of a table of labels
_MOSTLY = 0.9  # share of a class that makes it the label of an image
_SELDOM = 0.95  # share of different texts from which on they are no classes


def named_parts(values: Any, is_part: Callable[[Any], bool], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of a kind in nested mappings, sequences and dataclasses, with the keys or places to them."""
    if is_part(values):
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
        yield from named_parts(part, is_part, f"{name}.{key}" if name else str(key))


def named_tensors(values: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested values, see `named_parts`."""
    return named_parts(values, lambda part: isinstance(part, Tensor))


def first_tensor(batch: Any) -> Tensor | None:
    """Find the input of a model in a nested batch: its first tensor of floats or of images in bytes, images first."""
    inputs = [
        tensor
        for _, tensor in named_tensors(batch)
        if (tensor.ndim >= 3 if tensor.dtype == torch.uint8 else tensor.ndim >= 1 and tensor.is_floating_point())
    ]
    inputs = [tensor for tensor in inputs if tensor.ndim > 2] or inputs
    return inputs[0] if inputs else None


class WithWholeImage(NamedTuple):
    """An image for a network, or a batch of them, and the whole image: an item of `FolderImages`."""

    image: Tensor
    whole: Tensor


def collate_whole(
    collate_fn: Callable[[Any], Any], describe: Callable[[Tensor], Any] | None, items: Sequence[Any]
) -> tuple[Any, Any]:
    """Put items into a batch; with `describe`, return what it says of the whole images, of which the first stays."""
    batch, description = collate_fn(items), None
    if isinstance(batch, WithWholeImage) and describe is not None:
        batch, description = batch._replace(whole=batch.whole[:1]), describe(batch.whole)
    return batch, description


def class_numbers(tensor: Tensor, count: int) -> Tensor | None:
    """Return one number for each of `count` images `(count,)`, or the class with nine tenths; None without such."""
    if tensor.is_complex() or not tensor.ndim or len(tensor) != count or not tensor.numel():
        return None
    numbers = tensor.detach().double().cpu()
    if numbers.numel() == count:
        return numbers.flatten()
    if numbers.ndim != 2 or not ((numbers >= 0).all() and ((numbers.sum(1) - 1).abs() <= 0.01).all()):
        return None
    share, place = numbers.max(1)
    return place.double().where(share >= _MOSTLY, torch.nan)


def label_columns(batch: Any, count: int, images: Tensor | None) -> dict[str, Tensor]:
    """Return what may be labels of `count` images by name: tensors of one number for each, and columns of tables."""
    columns = dict[str, Tensor]()
    for name, tensor in named_tensors(batch):
        if tensor is images:
            continue
        if (numbers := class_numbers(tensor, count)) is not None:
            columns[name] = numbers
        elif tensor.ndim == 2 and len(tensor) == count and tensor.shape[1] <= _COLUMNS:
            table = tensor.detach().double().cpu()
            columns |= {f"{name}.{place}": column for place, column in enumerate(table.T)}
    return columns


def text_columns(batch: Any, count: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the sequences of one text for each of `count` images in a nested batch, see `named_parts`."""

    def is_column(part: Any) -> bool:
        return isinstance(part, (list, tuple)) and len(part) == count and all(isinstance(text, str) for text in part)

    return named_parts(batch, is_column)


class BatchLabels:
    """Collects what may be the labels of images: one number or text for each image, in their batches.

    Without a run's loss, what is called a label comes first, then `targets`, then integers and texts that repeat; of
    those that divide the images alike, texts, which name the classes.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, dict[int, float]] = {}  # `{name of the tensor: {position: number}}`
        self._texts: dict[str, dict[int, str]] = {}
        self._integers: set[str] = set()  # tensors of one integer for each image
        self._chosen: str | None = None
        self._settled = False
        self.problem = ""  # why labels are unknown although there are some
        self.renamed = False  # whether most are others than the data set's `targets`, so that it does not name them

    def add(self, positions: Sequence[int], batch: Any, images: Tensor | None) -> None:
        """Add a batch of the items at `positions`, except its `images`."""
        for name, numbers in label_columns(batch, len(positions), images).items():
            self.numbers.setdefault(name, {}).update(zip(positions, numbers.tolist(), strict=True))
        for name, tensor in named_tensors(batch):
            if tensor.numel() == len(positions) and not tensor.is_floating_point():
                self._integers.add(name)
        for name, texts in text_columns(batch, len(positions)):
            self._texts.setdefault(name, {}).update(zip(positions, texts, strict=True))

    def at(self, positions: Iterable[int], targets: Sequence[int] | None) -> Sequence[int | str | None]:
        """Return the labels at some positions without a run; None if unknown. The first call decides what counts."""
        if not self._settled:
            self._settled, self._chosen = True, self._choose_column(targets)
            self.renamed = are_renamed(self.numbers.get(self._chosen or "", {}), targets)
        if self._chosen in self._texts:
            return [self._texts[self._chosen].get(position) for position in positions]
        if self._chosen is not None:
            return labels_at(self.numbers[self._chosen], positions)
        return labels_at({} if targets is None else dict(enumerate(targets)), positions)

    def _choose_column(self, targets: Sequence[int] | None) -> str | None:
        """Choose the tensor or the texts of labels; None without any, or with a `problem` if there are several."""
        whole = {
            name: numbers
            for name, numbers in self.numbers.items()
            if all(number.is_integer() for number in numbers.values() if math.isfinite(number))
        }
        columns: dict[str, Mapping[int, Any]] = {**self._texts, **whole}
        chosen = {name: column for name, column in columns.items() if name.rpartition(".")[2] in _LABELS}
        if not chosen and targets is None:
            # Names of files may repeat, too, but seldom.
            shares = {name: len({*column.values()}) / len(column) for name, column in columns.items()}
            most = dict.fromkeys(self._integers, 1.0) | dict.fromkeys(self._texts, _SELDOM)
            chosen = {name: column for name, column in columns.items() if shares[name] < most.get(name, 0)}
            varying = {name: column for name, column in chosen.items() if len({*column.values()}) > 1}
            chosen = varying or {name: column for name, column in chosen.items() if name in whole}
        numbers = {tuple(column.items()) for name, column in chosen.items() if name in whole}
        if len({_division(column) for column in chosen.values()}) > 1 or len(numbers) > 1:
            names = ", ".join(f"`{name}`" for name in chosen)
            if targets is None:
                self.problem = (
                    f"each item has several values, {names}, any of which may be its label. Let batches be dicts in "
                    "which one of them is called `label`"
                )
            return None
        return next(iter(chosen), None)


def _division(column: Mapping[int, Any]) -> tuple[int, ...]:
    """Return how a column divides the images: numbers of its values in the order in which they first appear."""
    places = dict[Any, int]()
    return tuple(places.setdefault(column[position], len(places)) for position in sorted(column))


def labels_at(numbers: Mapping[int, float], positions: Iterable[int]) -> list[int | None]:
    """Return labels by position; None for unknown ones, which negative numbers, such as -100, and NaN stand for."""
    known = (numbers.get(position, math.nan) for position in positions)
    return [int(number) if number >= 0 else None for number in known]


def are_renamed(numbers: Mapping[int, float], targets: Sequence[int] | None) -> bool:
    """Whether most labels are others than the data set's `targets`, so that its names of classes are not theirs."""
    equal = 0 if targets is None else sum(targets[place] == number for place, number in numbers.items())
    return targets is not None and 2 * equal < len(numbers)


def name_labels(labels: Iterable[Any], names: Sequence[str]) -> list[str | None]:
    """Return labels by name, if they are places of names, or as they are; None for unknown and empty ones."""
    name_of = dict(enumerate(names))
    return [None if label is None else str(name_of.get(label, label)) or None for label in labels]
