"""Whether a network gets surer of its training images from validation to validation: the rise of a ratio of errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_anomaly.two_sample.confidence import error_ratio, mean_error

__all__ = ["CERTAIN", "WINDOW", "ErrorRise", "rise_over", "standard_error"]

WINDOW = 3  # validations whose mean is a level
CERTAIN = 3  # standard errors that a rise has to exceed
Errors = tuple[Tensor, Tensor]  # expected errors of training images (n,) and of validation images (m,)


class ErrorRise:
    """How far the ratio of expected errors is above the lowest level that it had.

    A level is the mean over three validations. The images are the same at each of them, so what is special about their
    division stays: a network that knows nothing of them may be surer of the one kind all the time. Its own lowest level
    is therefore what later ones are compared with, and not 1.

    Attributes:
        recent: What was added last, of three validations at most.
        lowest: The errors at the lowest level; None before there are three.

    Examples:
        >>> rise, same = ErrorRise(), torch.full((100,), 0.2)
        >>> [round(rise.add(same, same * ratio), 2) for ratio in (1, 1, 1, 1.3, 1.6)]
        [0.0, 0.0, 0.0, 0.1, 0.3]
    """

    def __init__(self) -> None:
        self.recent: list[Errors] = []
        self.lowest: Errors | None = None

    def add(self, train_errors: Tensor, val_errors: Tensor) -> float:
        """Takes the expected errors of a validation, `(n,)` and `(m,)`, and returns `rise_over`, 0 for the first two.

        Errors of another number of images begin anew.
        """
        if self.recent and [len(own) for own in self.recent[0]] != [len(train_errors), len(val_errors)]:
            self.recent, self.lowest = [], None
        self.recent = [*self.recent, (train_errors, val_errors)][-WINDOW:]
        if len(self.recent) < WINDOW:
            return 0.0
        train, val = (torch.stack(own).mean(0) for own in zip(*self.recent, strict=True))
        if self.lowest is None or error_ratio(train, val) < error_ratio(*self.lowest):
            self.lowest = train, val
        return rise_over(self.lowest, (train, val))

    def state_dict(self) -> dict[str, list[Errors]]:
        """What a resumed training needs."""
        return {"recent": self.recent, "lowest": [] if self.lowest is None else [self.lowest]}

    def load_state_dict(self, state_dict: dict[str, list[Errors]]) -> None:
        """Takes over what `state_dict` gave."""
        self.recent = list(state_dict["recent"])
        self.lowest = next(iter(state_dict["lowest"]), None)


def rise_over(lowest: Errors, now: Errors) -> float:
    """By what fraction the ratio of expected errors is above what it was; 0 unless by three standard errors.

    Args:
        lowest: Expected errors of training images `(n,)` and of validation images `(m,)` before.
        now: Of the same images.
    """
    rise = math.log(error_ratio(*now)) - math.log(error_ratio(*lowest))
    return math.expm1(rise) if rise > CERTAIN * standard_error(lowest, now) else 0.0


def standard_error(before: Errors, now: Errors) -> float:
    """Of the change of the logarithm of the ratio of expected errors, for other images of the same kind.

    By the delta method an image with the expected error e has the part e / mean(e) - 1 in the logarithm of a mean, so
    a change has the variance of how these parts change, over the number of images; the two kinds are independent.
    """
    variance = 0.0
    for old, new in zip(before, now, strict=True):
        change = new.double() / mean_error(new) - old.double() / mean_error(old)
        variance += change.var().item() / len(change)
    return math.sqrt(variance)
