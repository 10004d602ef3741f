"""When to stop: when a gap between training and validation images is open, and the validation loss confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Chosen on the runs of `TUNED_ON` in recipes/experiments; docs/results/stopping_output.md has what it costs on others.
CONFIRMED_THRESHOLD = 0.05  # the rise, as a fraction of the lowest level, where the loss has to agree
CONFIRMED_PATIENCE = 3  # validations without a lower loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates
# The network of a validation with a loss so many times its average is not the one to end with: with BatchNorm single
# epochs are worse by far, and the next one is as good as before.
_SPIKE = 1.1


def _averages(losses: Sequence[float]) -> list[float]:
    """The exponential average of the losses at each validation; one that is not finite leaves it as it is."""
    found: list[float] = []
    for loss in losses:
        before = found[-1] if found else math.nan
        now = loss if math.isnan(before) else SMOOTHING * before + (1 - SMOOTHING) * loss
        found.append(now if math.isfinite(loss) else before)
    return found


def since_best(losses: Sequence[float]) -> int:
    """Count the validations since the average of the losses was lowest.

    Examples:
        >>> since_best([1.0, 0.5, 0.8, 0.9]), since_best([])
        (1, 0)
    """
    known = [(average, place) for place, average in enumerate(_averages(losses)) if not math.isnan(average)]
    return len(losses) - 1 - min(known)[1] if known else len(losses)


def decide(
    rises: Sequence[float], losses: Sequence[float] | None, threshold: float, patience: int
) -> tuple[bool, str, int]:
    """Decide whether a run should stop after its last validation.

    It should if the last rise exceeds the threshold and it has waited for `patience` validations, unless the last loss
    is a spike. It waits while the loss gets no lower, or, without losses, while the rise is above the threshold.

    Returns:
        Whether to stop, the reason as a predicate of the signal, and how many validations it has waited.
    """
    if losses is None:
        waited = next((count for count, rise in enumerate(reversed(rises)) if not rise > threshold), len(rises))
        spike, told = False, f"has been above {threshold:g} for"
    else:
        waited = since_best(losses)
        spike = len(losses) > 0 and losses[-1] > _SPIKE * _averages(losses)[-1]
        told = f"is above {threshold:g} and the validation loss has not improved for"
    stops = bool(rises) and rises[-1] > threshold and waited >= patience and not spike
    return stops, f"{told} {waited} validation{'s' * (waited != 1)}", waited
