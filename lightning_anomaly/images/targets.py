"""What the targets of a data set say of a network's output: whether it can be scores of their classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

_CLASSES = 20  # different labels beside one output of an image, above which they are numbers rather than classes
_BEYOND = 0.1  # share of predictions above the largest label: of a network that learns these labels, nearly none


@dataclass
class Column:
    """What is known of one tensor of the batches, other than the images."""

    found: str  # its type and shape
    floating: bool
    values: dict[int, float] = field(default_factory=dict)  # by position, if it has one for each image
    single: bool = True  # whether it has one number for each image
    whole: bool = True  # if not, whether its numbers are integers, of whatever type
    shares: bool = True  # if not, whether they are shares of classes, which add up to 1

    def add(self, targets: Tensor, positions: Sequence[int]) -> None:
        """Add the tensor of a batch of the items at `positions`."""
        self.single &= targets.numel() == len(targets)
        if self.single:
            self.values.update(zip(positions, targets.flatten().tolist(), strict=True))
        else:
            self.whole &= not self.floating or bool((targets == targets.round()).all())
            self.shares &= bool((targets >= 0).all() and ((targets.sum(1) - 1).abs() <= 0.01).all())

    @property
    def labels(self) -> list[float]:
        """The labels of images; negative numbers and NaN stand for none."""
        return [value for value in self.values.values() if 0 <= value < math.inf]

    @property
    def all_whole(self) -> bool:
        """Whether all finite values are integers, of whatever type."""
        return all(float(value).is_integer() for value in self.values.values() if math.isfinite(value))

    @property
    def is_index(self) -> bool:
        """Whether it has another integer for each image."""
        return self.single and self.all_whole and len({*self.labels}) == len(self.labels)

    def contradicts(self, shape: Sequence[int], predicted: Tensor | None, images: Sequence[int]) -> str | None:
        """Return why an output cannot be scores of these classes, see `find_contradiction`."""
        positions = math.prod(shape[1:]) > 1
        if not self.single:
            possible = self.shares or (self.whole and positions)
            return None if possible else f"its targets, {self.found} for each image, are not one class"
        if not self.all_whole:
            return "its targets are real numbers, not classes"
        labels = {*self.labels}
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


def find_contradiction(
    columns: Iterable[Column], shape: Sequence[int], predicted: Tensor | None, images: Sequence[int]
) -> str | None:
    """Return why an output of a `shape` (scores, ...) cannot be scores of any of the columns; None if it can.

    `predicted` is the place of the largest score of each image `(n,)`, and `images` the shape of an image.
    """
    problems = [column.contradicts(shape, predicted, images) for column in columns if not column.is_index]
    return None if None in problems else next(iter(problems), None)
