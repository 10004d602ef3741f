"""Whether a network gets surer of its training images from validation to validation: the rise of a ratio of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.two_sample.confidence import mean_error

__all__ = [
    "CERTAIN",
    "FEWEST",
    "THRESHOLD",
    "WINDOW",
    "ErrorRise",
    "Level",
    "level_of",
    "mean_level",
    "rise_over",
    "standard_error",
]

WINDOW = 3  # validations whose mean is a level
# Standard errors that a rise has to exceed. One in 30,000 comparisons would by chance, but there is one at every
# validation, with the lowest level of all before: of fifty validations it is one or two trainings in a hundred.
CERTAIN = 4
# Errors that have to be expected of the images of one kind at least. Of fewer a few images decide, and where these were
# not drawn, the standard error knows nothing of them: of 1,000 images of each kind, 1 to 89% of simulated healthy
# networks that expect 0.03 to 7 errors were stopped without this, and at most 1% with it.
FEWEST = 10
THRESHOLD = 0.1  # the rise that stops a training, as a fraction of the lowest level


class Level(NamedTuple):
    """What a validation, or the mean of several, says of the ratio of expected errors.

    Attributes:
        log_ratio: The logarithm of the ratio.
        train: Expected errors of the training images `(n,)`, divided by their mean.
        val: Likewise of the validation images `(m,)`.
        errors: The larger of the two mean errors, times the number of images of the smaller kind; infinite for a mean
            of several validations.
    """

    log_ratio: float
    train: Tensor
    val: Tensor
    errors: float = math.inf


class ErrorRise:
    """How far the ratio of expected errors is above the lowest level that it had.

    A level is the (geometric) mean over three validations. The images are the same at each of them, so what is special
    about their division stays: a network that knows nothing of them may be surer of the one kind all the time. Its own
    lowest level is therefore what later ones are compared with, and not 1. Where fewer than ten errors are expected of
    both kinds there is no level.

    Attributes:
        recent: Of the last validations, three at most.
        lowest: The lowest level; None before there are three.

    Examples:
        >>> rise, same = ErrorRise(), torch.full((100,), 0.2)
        >>> [round(rise.add(same, same * ratio), 2) for ratio in (1, 1, 1, 1.331)]
        [0.0, 0.0, 0.0, 0.1]
    """

    def __init__(self) -> None:
        self.recent: list[Level] = []
        self.lowest: Level | None = None

    def add(self, train_errors: Tensor, val_errors: Tensor) -> float:
        """Takes the expected errors of a validation, `(n,)` and `(m,)`, and returns `rise_over`, 0 for the first two.

        Errors of another number of images begin anew.
        """
        own = level_of(train_errors, val_errors)
        if self.recent and (self.recent[0].train.shape, self.recent[0].val.shape) != (own.train.shape, own.val.shape):
            self.recent, self.lowest = [], None
        self.recent = [*self.recent, own][-WINDOW:]
        if len(self.recent) < WINDOW or self.too_sure:
            return 0.0
        now = mean_level(self.recent)
        if self.lowest is None or now.log_ratio < self.lowest.log_ratio:
            self.lowest = now
        return rise_over(self.lowest, now)

    @property
    def too_sure(self) -> bool:
        """Whether the network expects too few errors now for a level."""
        return bool(self.recent) and min(level.errors for level in self.recent) < FEWEST

    def state_dict(self) -> dict[str, list[Any]]:
        """What a resumed training needs, in plain types."""
        lowest = [] if self.lowest is None else [self.lowest]
        return {"recent": [tuple(level) for level in self.recent], "lowest": [tuple(level) for level in lowest]}

    def load_state_dict(self, state_dict: dict[str, list[Any]]) -> None:
        """Takes over what `state_dict` gave."""
        self.recent = [Level(*level) for level in state_dict["recent"]]
        self.lowest = next((Level(*level) for level in state_dict["lowest"]), None)


def level_of(train_errors: Tensor, val_errors: Tensor) -> Level:
    """Of one validation, from expected errors `(n,)` and `(m,)`."""
    train, val = mean_error(train_errors), mean_error(val_errors)
    errors = max(train, val) * min(len(train_errors), len(val_errors))  # of fewer images fewer decide
    return Level(math.log(val / train), train_errors.double() / train, val_errors.double() / val, errors)


def mean_level(levels: Sequence[Level]) -> Level:
    """Of several validations."""
    log_ratios, train, val, _ = zip(*levels, strict=True)
    return Level(sum(log_ratios) / len(levels), torch.stack(train).mean(0), torch.stack(val).mean(0))


def rise_over(lowest: Level, now: Level) -> float:
    """By what fraction the ratio of expected errors is above what it was; 0 within four standard errors."""
    rise = now.log_ratio - lowest.log_ratio
    return math.expm1(rise) if rise > CERTAIN * standard_error(lowest, now) else 0.0


def standard_error(before: Level, now: Level) -> float:
    """Of the change of the logarithm of the ratio, had other images of the same kind been taken.

    By the delta method an image with the expected error e has the part e / mean(e) - 1 in the logarithm of a mean, so
    a change has the variance of how these parts change, over the number of images; the two kinds are independent. It
    takes a hundred images or more, and more where few of them make most of the errors; of images that depend on each
    other it is too small.
    """
    changes = now.train - before.train, now.val - before.val
    return math.sqrt(sum(change.var().item() / len(change) for change in changes))
