"""When to stop a run: the rules of both early stoppings, and their thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# The gap between training and validation images, and the validation loss. Chosen on the runs of `TUNED_ON` in
# recipes/experiments; docs/results/stopping_output.md has what it costs on others.
GAP = 0.05  # the rise of the ratio of expected errors, as a fraction of its lowest level, that a loss has to confirm
LOSS_PATIENCE = 3  # validations without a lower average of the loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates
# The network of a validation with a loss so many times its average is not the one to end with: with BatchNorm single
# epochs are worse by far, and the next one is as good as before.
SPIKE = 1.1
GAP_ALONE = 0.1  # the rise that stops a run without a loss

HOLD = 5  # validations that make a level of the anomaly fraction: for so long it has to stay there, below and above
# The rise of the anomaly fraction. In simulations of 1,000 runs of 100 validations with 160 filters, each flagged with
# a constant probability, independently and anew at each validation, at 0.05, 0.1 and 0.3 no run is stopped, at 0.5
# three are; with 22 filters at 0.05 five. A step from 0.05 to 0.25 is found within `RISE_PATIENCE` validations in every
# run, one to 0.15 in 7 of 10, and in 9 of 10 within twice as many. Where each filter keeps its verdict from one
# validation to the next with probability 0.8, 48 runs are stopped at 0.05, but 714 at 0.3, and one with 0.15.
RISE = 0.05
RISE_PATIENCE = 6  # validations that a rise has to last


class LossTrend(NamedTuple):
    """The exponential average of a loss after its last validation."""

    average: float  # now
    lowest: float  # so far
    place: int  # the validation with the lowest
    waited: int  # validations since then
    spike: bool  # whether the last loss is far above its average


def loss_trend(losses: Sequence[float]) -> LossTrend | None:
    """Compute the exponential average of losses, without those that are not finite; None if none is left.

    Examples:
        >>> loss_trend([1.0, 0.5, 0.8, 0.9]).waited
        1
    """
    averages: list[float] = []
    for loss in losses:
        before = averages[-1] if averages else math.nan
        now = loss if math.isnan(before) else SMOOTHING * before + (1 - SMOOTHING) * loss
        averages.append(now if math.isfinite(loss) else before)
    known = [(average, place) for place, average in enumerate(averages) if not math.isnan(average)]
    if not known:
        return None
    lowest, place = min(known)
    return LossTrend(averages[-1], lowest, place, len(losses) - 1 - place, losses[-1] > SPIKE * averages[-1])


def confirms(trend: LossTrend | None, patience: int) -> bool:
    """Whether a loss has not improved for `patience` validations, and the last one is no spike."""
    return trend is not None and trend.waited >= patience and not trend.spike


def last_above(values: Sequence[float], threshold: float) -> int:
    """Count the last values in a row that are above a threshold.

    Examples:
        >>> last_above([0.2, 0.0, 0.2, 0.3], 0.1)
        2
    """
    return next((count for count, value in enumerate(reversed(values)) if not value > threshold), len(values))


def rise(fractions: Sequence[float]) -> float:
    """Compute the sustained rise of a series over the lowest level that it held before.

    With windows of `HOLD = 5` consecutive values `x`,

        rise = max(0, min(x[-5:]) - min over all earlier windows w of max(w)),

    where a window is earlier if it ends before the last five values begin. All of the last five values lie at least
    that far above all five of some earlier stretch. A single odd value, high or low, raises nothing; fluctuation around
    a constant is taken off at both ends instead of being averaged; there is no noise level to be estimated and no
    weight to be chosen. It is 0 while the series is flat or falls, and before there are ten values. A step shows from
    the fifth value after it on, as the height of the step.
    """
    earlier = [max(fractions[end - HOLD : end]) for end in range(HOLD, len(fractions) - HOLD + 1)]
    return max(0.0, min(fractions[-HOLD:]) - min(earlier)) if earlier else 0.0
