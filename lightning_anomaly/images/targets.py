"""What the targets of a data set say of a network's output: whether it can be scores of their classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_anomaly.images.batch_labels import named_tensors

_CLASSES = 20  # different labels beside one output of an image, above which they are numbers rather than classes
_BEYOND = 0.1  # share of predictions above the largest label: of a network that learns these labels, nearly none


@dataclass
class _Column:
    """What is known of one tensor of the batches."""

    found: str  # its type and shape
    single: bool = True  # whether it has one number for each image
    whole: bool = True  # whether its numbers are integers, of whatever type
    shares: bool = True  # whether they are shares of classes, which add up to 1
    labels: dict[int, float] = field(default_factory=dict)  # by position, if it has one for each image

    def add(self, targets: Tensor, positions: Sequence[int]) -> None:
        self.single &= targets.numel() == len(targets)
        if self.single:
            targets = targets.flatten()
            labels = zip(positions, targets.tolist(), strict=True)
            # Negative numbers and NaN stand for no label.
            self.labels |= {position: label for position, label in labels if 0 <= label < math.inf}
            targets = targets[targets.isfinite()]
        self.whole &= not targets.is_floating_point() or bool((targets == targets.round()).all())
        self.shares &= targets.ndim > 1 and bool((targets >= 0).all() and ((targets.sum(1) - 1).abs() <= 0.01).all())

    @property
    def is_index(self) -> bool:
        """Whether it has another integer for each image."""
        return self.single and self.whole and len({*self.labels.values()}) == len(self.labels)

    def contradicts(self, shape: Sequence[int], predicted: Tensor | None, images: Sequence[int]) -> str | None:
        """Return why an output cannot be scores of these classes, see `find_contradiction`."""
        positions = math.prod(shape[1:]) > 1
        if not self.single:
            possible = self.shares or (self.whole and positions)
            return None if possible else f"its targets, {self.found} for each image, are not one class"
        if not self.whole:
            return "its targets are real numbers, not classes"
        labels = {*self.labels.values()}
        # One output may tell some classes from the others, as in "5 or more".
        if len(labels) > (_CLASSES if shape[0] == 1 else shape[0]):
            return f"there are more different labels, {len(labels)}, than scores of an image, {shape[0]}"
        if positions and tuple(shape) == tuple(images):
            return "it has the shape of the images"
        if predicted is None or not labels:
            return None
        largest = int(max(labels))
        share = (predicted > largest).double().mean().item()
        beyond = f"{100 * share:.0f}% of its largest scores are of no class, as no label is above {largest}"
        return beyond if share > _BEYOND else None


class Targets:
    """What the batches of a data set hold beside the images."""

    def __init__(self) -> None:
        self.columns: dict[str, _Column] = {}  # by name

    def add(self, batch: Any, images: Tensor | None, positions: Sequence[int]) -> None:
        """Add a batch of the items at `positions`."""
        for name, tensor in named_tensors(batch):
            numbers = tensor.ndim and len(tensor) == len(positions) and tensor.numel() and not tensor.is_complex()
            if tensor is not images and numbers:
                found = f"{tensor.dtype} of shape {tuple(tensor.shape[1:])}"
                self.columns.setdefault(name, _Column(found)).add(tensor.detach(), positions)


def find_contradiction(
    targets: Iterable[Targets], shape: Sequence[int], predicted: Tensor | None, images: Sequence[int]
) -> str | None:
    """Return why an output of a `shape` (scores, ...) cannot be scores of any of the targets; None if it can.

    `predicted` is the place of the largest score of each image `(n,)`, and `images` the shape of an image.
    """
    columns = [column for part in targets for column in part.columns.values() if not column.is_index]
    problems = [column.contradicts(shape, predicted, images) for column in columns]
    return None if None in problems else next(iter(problems), None)
