"""When to stop a run: the rules and thresholds of both early stoppings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import pstdev
from typing import NamedTuple

# The rule for the gap between training and validation images. It was chosen on the runs of `TUNED_ON` in
# recipes/experiments; docs/results/stopping_output.md has its cost on other runs.
GAP = 0.05  # rise of the ratio of expected errors, as a fraction of its lowest level, if a loss confirms it
GAP_ALONE = 0.1  # the same without a loss
LOSS_PATIENCE = 3  # validations without a lower average of the loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates
# A loss that is further above its average than the standard deviation of this many last losses is a spike, and no run
# ends there: with BatchNorm single epochs are far worse, and the next epoch is as good as before.
SPIKE_WINDOW = 10

HOLD = 5  # validations for which the anomaly fraction has to hold a level
# The rise of the anomaly fraction. Simulated: 1,000 runs of 100 validations with 160 filters, each flagged
# independently with a constant probability. At 0.05, 0.1 and 0.3 no run is stopped, at 0.5 three; with 22 filters at
# 0.05 five. A step from 0.05 to 0.25 is found within `RISE_PATIENCE` validations in every run, one to 0.15 in 7 of 10
# runs, and in 9 of 10 within twice as many. If filters keep their verdict at the next validation with probability 0.8,
# 48 runs are stopped at 0.05 and 714 at 0.3, where a threshold of 0.15 stops one.
RISE = 0.05
RISE_PATIENCE = 6  # validations for which a rise has to last


class LossTrend(NamedTuple):
    """The exponential average of a loss after its last validation."""

    average: float
    waited: int  # validations since the lowest average
    spike: bool  # whether the last loss is far above its average, for its own fluctuation


def loss_trend(losses: Sequence[float]) -> LossTrend | None:
    """Compute the exponential average of the finite losses; None if there are none.

    Examples:
        >>> loss_trend([1.0, 0.5, 0.8, 0.9]).waited
        1
    """
    averages: list[float] = []
    for loss in losses:
        before = averages[-1] if averages else math.nan
        # In this form, the average of a constant loss stays the same.
        now = loss if math.isnan(before) else before + (1 - SMOOTHING) * (loss - before)
        averages.append(now if math.isfinite(loss) else before)
    candidates = [(average, place) for place, average in enumerate(averages) if not math.isnan(average)]
    if not candidates:
        return None
    _, place = min(candidates)
    last = [loss for loss in losses if math.isfinite(loss)][-SPIKE_WINDOW:]
    spike = losses[-1] - averages[-1] > pstdev(last)
    return LossTrend(averages[-1], len(losses) - 1 - place, spike)


def confirms(trend: LossTrend | None, patience: int) -> bool:
    """Whether a loss has not improved for `patience` validations and its last value is no spike."""
    return trend is not None and trend.waited >= patience and not trend.spike


def last_above(values: Sequence[float], threshold: float) -> int:
    """Count how many values at the end are all above a threshold.

    Examples:
        >>> last_above([0.2, 0.0, 0.2, 0.3], 0.1)
        2
    """
    return next((count for count, value in enumerate(reversed(values)) if not value > threshold), len(values))


def rise(fractions: Sequence[float]) -> float:
    """Compute the sustained rise of a series `x` over the lowest level that it held before.

    With windows `w` of `HOLD = 5` consecutive values that end before the last five begin,

        rise = max(0, min(x[-5:]) - min over w of max(w)).

    So all of the last five values lie at least that far above all five values of some earlier window. A single high or
    low value has no effect, and fluctuation around a constant only reduces the rise. It is 0 while the series is flat
    or falls, and before there are ten values. A step shows from its fifth value on, with its full height.
    """
    earlier = [max(fractions[end - HOLD : end]) for end in range(HOLD, len(fractions) - HOLD + 1)]
    return max(0.0, min(fractions[-HOLD:]) - min(earlier)) if earlier else 0.0
