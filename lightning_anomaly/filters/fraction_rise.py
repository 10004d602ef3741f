"""The rise of the fraction of anomaly filters over the validations of a run."""

from __future__ import annotations

from collections.abc import Sequence

HOLD = 5  # validations for which the anomaly fraction has to hold a level
# The rise of the anomaly fraction. Simulated: 1,000 runs of 100 validations with 160 filters, each flagged
# independently with a constant probability. At 0.05, 0.1 and 0.3 no run is stopped, at 0.5 three; with 22 filters at
# 0.05 five. A step from 0.05 to 0.25 is found within `RISE_PATIENCE` validations in every run, one to 0.15 in 7 of 10
# runs, and in 9 of 10 within twice as many. If filters keep their verdict at the next validation with probability 0.8,
# 48 runs are stopped at 0.05 and 714 at 0.3, where a threshold of 0.15 stops one.
RISE = 0.05
RISE_PATIENCE = 6  # validations for which a rise has to last


def fraction_rise(fractions: Sequence[float]) -> float:
    """Compute the sustained rise of a series `x` over the lowest level that it held before.

    With windows `w` of `HOLD = 5` consecutive values that end before the last five begin,

        rise = max(0, min(x[-5:]) - min over w of max(w)).

    So a single high or low value has no effect, fluctuation around a constant only reduces the rise, and a step shows
    from its fifth value on, with its full height.
    """
    earlier = [max(fractions[end - HOLD : end]) for end in range(HOLD, len(fractions) - HOLD + 1)]
    return max(0.0, min(fractions[-HOLD:]) - min(earlier)) if earlier else 0.0
