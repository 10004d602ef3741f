"""When to stop a run: the rise of the ratio of expected errors, and a loss that confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import pstdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.memorization.comparison import mean_error

# The rule for the gap between training and validation images. It was chosen on the runs of `TUNED_ON` in
# recipes/experiments; docs/results/stopping_output.md has its cost on other runs.
GAP = 0.05  # rise of the ratio of expected errors, as a fraction of its lowest level
LOSS_PATIENCE = 3  # validations without a lower average of the loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates
# A loss that is further above its average than the standard deviation of this many last losses is a spike, and no run
# ends there: with BatchNorm single epochs are far worse, and the next epoch is as good as before.
SPIKE_WINDOW = 10
WINDOW = 3  # validations whose mean is a level
# Standard errors that a rise has to exceed. Chance exceeds them in one of 30,000 comparisons. But each validation is
# compared with the lowest of all earlier levels, so it happens in one or two of 100 runs of 50 validations.
Z_THRESHOLD = 4
# Expected errors that a level needs, on the kind of images with more of them. With fewer, a few images dominate, and
# the standard error misses those that were not drawn. In simulations with 1,000 images of each kind, 1 to 89% of
# healthy networks with 0.03 to 7 expected errors were stopped without this threshold, and at most 1% with it.
MIN_ERRORS = 10


class Level(NamedTuple):
    """The ratio of expected errors at a validation, or its mean over several."""

    log_ratio: float
    train: Tensor  # expected errors of the training images `(n,)`, divided by their mean; NaN for one that is missing
    val: Tensor  # expected errors of the validation images `(m,)`, divided by their mean
    errors: float = math.inf  # number of expected errors, see `error_level`; infinite for a mean over validations


class ErrorRise:
    """The rise of the ratio of expected errors above its lowest level.

    A level is the geometric mean over three validations. Levels are compared with the network's lowest level and not
    with 1: a network that has memorized neither kind of images may still be more confident on one of them.
    """

    def __init__(self) -> None:
        self.recent: list[Level] = []  # of the last three validations
        self.lowest: Level | None = None  # None before there is a level

    def add(self, train_errors: Tensor, val_errors: Tensor) -> float:
        """Add the expected errors of the same images `(n,)` and `(m,)`, NaN for a missing one; return the rise."""
        self.recent = [*self.recent, error_level(train_errors, val_errors)][-WINDOW:]
        if len(self.recent) < WINDOW or self.too_few_expected_errors:
            return 0.0
        now = mean_error_level(self.recent)
        if self.lowest is None or now.log_ratio < self.lowest.log_ratio:
            self.lowest = now
        return rise_over(self.lowest, now)

    @property
    def too_few_expected_errors(self) -> bool:
        """Whether a recent validation has too few expected errors for a level."""
        return any(level.errors < MIN_ERRORS for level in self.recent)

    def state_dict(self) -> dict[str, Any]:
        """Return the recent and the lowest level as tuples."""
        return {"recent": [tuple(level) for level in self.recent], "lowest": self.lowest and tuple(self.lowest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; what is missing is as before the first validation."""
        lowest = state_dict.get("lowest")
        self.recent = [Level(*level) for level in state_dict.get("recent", [])]
        self.lowest = lowest and Level(*lowest)


def error_level(train_errors: Tensor, val_errors: Tensor) -> Level:
    """Compute the level of one validation from expected errors `(n,)` and `(m,)`."""
    present = [errors[~errors.isnan()] for errors in (train_errors, val_errors)]
    train, val = map(mean_error, present)
    errors = max(train, val) * min(map(len, present))  # if both groups were as small as the smaller
    return Level(math.log(val / train), train_errors.double() / train, val_errors.double() / val, errors)


def mean_error_level(levels: Sequence[Level]) -> Level:
    """Compute the mean of several levels."""
    log_ratios, train, val, _ = zip(*levels, strict=True)
    return Level(sum(log_ratios) / len(levels), torch.stack(train).nanmean(0), torch.stack(val).nanmean(0))


def rise_over(lowest: Level, now: Level) -> float:
    """Compute the relative rise of the ratio above the lowest level; 0 up to four standard errors."""
    rise = now.log_ratio - lowest.log_ratio
    return math.expm1(rise) if rise > Z_THRESHOLD * standard_error(lowest, now) else 0.0


def standard_error(before: Level, now: Level) -> float:
    """Compute the standard error of the change of the log ratio, over draws of other images of the same kinds.

    By the delta method, an image with expected error e contributes e / mean(e) - 1 to the logarithm of the mean. It is
    valid from 100 images on, more if a few make most of the errors, and too small if images depend on each other.
    """
    changes = [change[~change.isnan()] for change in (now.train - before.train, now.val - before.val)]
    return math.sqrt(sum(change.var().item() / len(change) for change in changes))


class LossTrend(NamedTuple):
    """The exponential average of the finite losses after the last validation."""

    average: float  # NaN without any
    waited: int  # validations since the lowest average
    spike: bool  # whether the last loss is far above its average, for its own fluctuation

    def stalled(self, patience: int) -> bool:
        """Whether the loss has not improved for `patience` validations and its last value is no spike."""
        return self.waited >= patience and not self.spike


def loss_trend(losses: Sequence[float]) -> LossTrend:
    """Compute the trend of a loss from its values at all validations."""
    averages: list[float] = []
    for loss in losses:
        before = averages[-1] if averages else math.nan
        # In this form, the average of a constant loss stays the same.
        now = loss if math.isnan(before) else before + (1 - SMOOTHING) * (loss - before)
        averages.append(now if math.isfinite(loss) else before)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return LossTrend(math.nan, 0, False)
    lowest = averages.index(min(average for average in averages if not math.isnan(average)))
    spike = losses[-1] - averages[-1] > pstdev(finite[-SPIKE_WINDOW:])
    return LossTrend(averages[-1], len(losses) - 1 - lowest, spike)
