"""The rise of the ratio of expected errors from validation to validation, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.two_sample.confidence import mean_error

WINDOW = 3  # validations whose mean is a level
# A rise has to exceed this many standard errors. Chance exceeds them once in 30,000 comparisons, but each validation is
# compared with the lowest of all levels before: of trainings of fifty validations it is one or two in a hundred.
Z_THRESHOLD = 4
# Errors that have to be expected of the images of one kind at least. Of fewer a few images decide, which the standard
# error does not know if they were not drawn: of 1,000 images of each kind, 1 to 89% of simulated healthy networks that
# expect 0.03 to 7 errors were stopped without this, and at most 1% with it.
MIN_ERRORS = 10


class Level(NamedTuple):
    """The ratio of expected errors at a validation, or its mean over several."""

    log_ratio: float
    train: Tensor  # expected errors of the training images `(n,)`, divided by their mean
    val: Tensor  # likewise of the validation images `(m,)`
    # The larger mean error, times the number of images of the smaller kind; infinite for a mean over validations.
    errors: float = math.inf


class ErrorRise:
    """How far the ratio of expected errors is above the lowest level that it had.

    A level is the (geometric) mean over three validations. A network that knows neither kind of images may still be
    surer of one of them, as these are the same images each time. So later levels are compared with the lowest of
    this network, and not with 1. Where fewer than ten errors are expected of both kinds there is no level.

    Examples:
        >>> rise, same = ErrorRise(), torch.full((100,), 0.2)
        >>> [round(rise.add(same, same * ratio), 2) for ratio in (1, 1, 1, 1.331)]
        [0.0, 0.0, 0.0, 0.1]
    """

    def __init__(self) -> None:
        self.recent: list[Level] = []  # of the last validations, three at most
        self.lowest: Level | None = None  # None before there are three

    def add(self, train_errors: Tensor, val_errors: Tensor) -> float:
        """Add the expected errors of a validation, `(n,)` and `(m,)`, and return `rise_over`, 0 for the first two.

        With another number of images than before it starts over.
        """
        level = level_of(train_errors, val_errors)
        if self.recent and (self.recent[0].train.shape, self.recent[0].val.shape) != (
            level.train.shape,
            level.val.shape,
        ):
            self.recent, self.lowest = [], None
        self.recent = [*self.recent, level][-WINDOW:]
        if len(self.recent) < WINDOW or self.too_few_expected_errors:
            return 0.0
        now = mean_level(self.recent)
        if self.lowest is None or now.log_ratio < self.lowest.log_ratio:
            self.lowest = now
        return rise_over(self.lowest, now)

    @property
    def too_few_expected_errors(self) -> bool:
        """Whether the network now expects too few errors for a level."""
        return bool(self.recent) and min(level.errors for level in self.recent) < MIN_ERRORS

    def state_dict(self) -> dict[str, list[Any]]:
        """Return what a resumed run needs, in plain types."""
        lowest = [] if self.lowest is None else [self.lowest]
        return {"recent": [tuple(level) for level in self.recent], "lowest": [tuple(level) for level in lowest]}

    def load_state_dict(self, state_dict: dict[str, list[Any]]) -> None:
        """Restore what `state_dict` returned."""
        self.recent = [Level(*level) for level in state_dict["recent"]]
        self.lowest = next((Level(*level) for level in state_dict["lowest"]), None)


def level_of(train_errors: Tensor, val_errors: Tensor) -> Level:
    """Compute the level of one validation from expected errors `(n,)` and `(m,)`."""
    train, val = mean_error(train_errors), mean_error(val_errors)
    errors = max(train, val) * min(len(train_errors), len(val_errors))  # of fewer images fewer decide
    return Level(math.log(val / train), train_errors.double() / train, val_errors.double() / val, errors)


def mean_level(levels: Sequence[Level]) -> Level:
    """Compute the mean of several levels."""
    log_ratios, train, val, _ = zip(*levels, strict=True)
    return Level(sum(log_ratios) / len(levels), torch.stack(train).mean(0), torch.stack(val).mean(0))


def rise_over(lowest: Level, now: Level) -> float:
    """Compute by what fraction the ratio of expected errors is above the lowest; 0 within four standard errors."""
    rise = now.log_ratio - lowest.log_ratio
    return math.expm1(rise) if rise > Z_THRESHOLD * standard_error(lowest, now) else 0.0


def standard_error(before: Level, now: Level) -> float:
    """Compute the standard error of the change of the log ratio, over draws of other images of the same kinds.

    By the delta method an image with the expected error e has the part e / mean(e) - 1 in the logarithm of a mean, so
    a change has the variance of how these parts change, over the number of images; the two kinds are independent. It
    takes a hundred images or more, and more where few of them make most of the errors; of images that depend on each
    other it is too small.
    """
    changes = now.train - before.train, now.val - before.val
    return math.sqrt(sum(change.var().item() / len(change) for change in changes))
