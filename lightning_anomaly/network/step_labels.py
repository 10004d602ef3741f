"""Which tensor of a batch has the labels: the one whose numbers tell the targets that the loss is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.images.batches import class_numbers, labels_at
from lightning_anomaly.network.class_scores import Match
from lightning_anomaly.network.step_watch import LossCall, StepWatch

_REPEATED = 4  # images with a number seen before, which tell that targets are a function of it


class StepLabels(NamedTuple):
    """Where labels come from: a tensor of the batches, and what the loss makes of its numbers."""

    column: str = ""  # name of the tensor
    classes: Mapping[float, float] = {}  # `{number: label}` of the numbers seen
    n_same: float = 0  # other numbers below this one are their own label
    problem: str = ""  # why no label is known of an image

    def at(self, columns: Mapping[str, Mapping[int, float]], positions: Iterable[int]) -> list[int | None]:
        """Return the labels of images by position, from the numbers of `BatchLabels`; None where unknown."""
        numbers = columns.get(self.column, {})
        labels = {position: self._label(number) for position, number in numbers.items()}
        return labels_at(labels, positions)

    @property
    def renames(self) -> bool:
        """Whether labels are other numbers than those of the batch."""
        return any(number != label for number, label in self.classes.items())

    def _label(self, number: float) -> float:
        return self.classes.get(number, number if number < self.n_same else math.nan)


class _Column(NamedTuple):
    """The numbers of a tensor, each with the one target that images with it have had."""

    classes: dict[float, float]
    repeated: int  # images with a number seen before


class TargetColumns:
    """The tensors of batches that tell all targets seen so far; a run that changes its targets begins anew."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, step: StepWatch, matches: Sequence[Match]) -> StepLabels:
        """Add a step with the losses that are given its scores."""
        targets, problem = _targets(matches, step)
        if targets is None:
            return StepLabels(problem=problem)
        known, columns = targets >= 0, step.columns.items()
        now = {name: _column(numbers[known].tolist(), targets[known].tolist()) for name, numbers in columns}
        told = {name: column for name, column in now.items() if column is not None}
        both = {name: _joined(self._columns[name], column) for name, column in told.items() if name in self._columns}
        joined = {name: column for name, column in both.items() if column is not None}
        self._columns = joined or told
        return self._choose(matches[0].n_classes)

    def _choose(self, n_classes: int) -> StepLabels:
        if self._columns and all(len({*column.classes.values()}) < 2 for column in self._columns.values()):
            return StepLabels(problem="the targets of the loss are all of one class so far")
        same = {name for name, (classes, _) in self._columns.items() if all(n == t for n, t in classes.items())}
        if len(same) > 1:
            return StepLabels(problem=f"{', '.join(sorted(same))} of a batch are all equal to the targets so far")
        told = same or {name for name, column in self._columns.items() if column.repeated >= _REPEATED}
        fewest = min((len(self._columns[name].classes) for name in told), default=0)
        told = {name for name in told if len(self._columns[name].classes) == fewest}
        if len(told) == 1:
            (name,) = told
            return StepLabels(name, self._columns[name].classes, max(2, n_classes or math.inf) if same else 0)
        sources = "several tensors" if told else "no tensor"
        return StepLabels(problem=f"the targets of the loss are a function of {sources} in a batch")


def classes_in(loss: LossCall) -> list[float]:
    """Return up to two of the classes that a loss is given as targets."""
    target = loss.target
    if target.is_floating_point() and target.shape == loss.given.shape and not loss.is_binary:
        target = target.argmax(loss.axis)
    return [number for number in target.unique().tolist() if number >= 0][:2]


def _targets(matches: Sequence[Match], step: StepWatch) -> tuple[Tensor | None, str]:
    """Return the class that each image of a step has as its target `(n,)`, NaN without one, or why it is unknown."""
    places = {match.place for match in matches}
    wanted = torch.full((step.count,), torch.nan, dtype=torch.float64, device="cpu")
    if len(places) > 1:
        return None, f"the loss has {len(places)} targets for each image"
    for target, rows in ((match.loss.target, match.rows) for match in matches if match.loss.target is not None):
        numbers = class_numbers(target, step.count if rows is None else len(target))
        if numbers is None:
            shape = f"targets of shape {tuple(target.shape)}"
            return None, f"the loss is given {shape} for its images, not one class for each"
        numbers = numbers.round().where((numbers - numbers.round()).abs() <= 0.1, torch.nan)  # smoothed ones
        if rows is not None:
            some, numbers = numbers[rows.clamp(min=0)].where(rows >= 0, torch.nan), torch.full_like(wanted, torch.nan)
            numbers[step.checked[: len(rows)]] = some
        if ((numbers != wanted) & (numbers >= 0) & (wanted >= 0)).any():
            return None, "the loss has several targets for an image"
        wanted = wanted.where(wanted >= 0, numbers)
    return (wanted, "") if (wanted >= 0).any() else (None, "no target of the loss is a class")


def _column(numbers: Sequence[float], targets: Sequence[float]) -> _Column | None:
    """Return what targets a tensor's numbers have; None if one number has several."""
    classes = dict(zip(numbers, targets, strict=True))
    tells = all(classes[number] == target for number, target in zip(numbers, targets, strict=True))
    return _Column(classes, len(numbers) - len(classes)) if tells else None


def _joined(before: _Column, now: _Column) -> _Column | None:
    if any(now.classes.get(number, target) != target for number, target in before.classes.items()):
        return None
    return _Column({**before.classes, **now.classes}, before.repeated + now.repeated)
