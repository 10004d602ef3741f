"""When to stop a run by the gap between training and validation images, confirmed by a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import pstdev
from typing import NamedTuple

# The rule for the gap between training and validation images. It was chosen on the runs of `TUNED_ON` in
# recipes/experiments; docs/results/stopping_output.md has its cost on other runs.
GAP = 0.05  # rise of the ratio of expected errors, as a fraction of its lowest level
LOSS_PATIENCE = 3  # validations without a lower average of the loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates
# A loss that is further above its average than the standard deviation of this many last losses is a spike, and no run
# ends there: with BatchNorm single epochs are far worse, and the next epoch is as good as before.
SPIKE_WINDOW = 10


class LossTrend(NamedTuple):
    """The exponential average of a loss after its last validation."""

    average: float
    waited: int  # validations since the lowest average
    spike: bool  # whether the last loss is far above its average, for its own fluctuation


def loss_trend(losses: Sequence[float]) -> LossTrend | None:
    """Compute the exponential average of the finite losses; None if there are none."""
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


def stalled(trend: LossTrend | None, patience: int) -> bool:
    """Whether a loss has not improved for `patience` validations and its last value is no spike."""
    return trend is not None and trend.waited >= patience and not trend.spike
