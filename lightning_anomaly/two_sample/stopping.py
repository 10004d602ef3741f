"""When to stop: when a gap between training and validation images is open, and the validation loss confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["CONFIRMED_PATIENCE", "CONFIRMED_THRESHOLD", "SMOOTHING", "decide", "since_best", "waited"]

# Chosen on the runs of `TUNED_ON` in recipes/experiments; docs/results/stopping_output.md has what it costs on others.
CONFIRMED_THRESHOLD = 0.05  # the rise, as a fraction of the lowest level, where the loss has to agree
CONFIRMED_PATIENCE = 3  # validations without a lower loss
SMOOTHING = 0.7  # weight of the average so far: the loss of a few hundred images fluctuates


def since_best(losses: Sequence[float]) -> int:
    """Count the validations since the exponential average of the losses was lowest.

    A loss that is not finite does not count as lower, and leaves the average as it is.

    Examples:
        >>> since_best([1.0, 0.5, 0.8, 0.9]), since_best([])
        (1, 0)
    """
    average, lowest, waited = None, math.inf, 0
    for loss in losses:
        waited += 1
        if math.isfinite(loss):
            average = loss if average is None else SMOOTHING * average + (1 - SMOOTHING) * loss
            if average < lowest:
                lowest, waited = average, 0
    return waited


def waited(rises: Sequence[float], losses: Sequence[float] | None, threshold: float) -> int:
    """Count the last validations in a row without a lower loss, or, without losses, with a rise above the threshold."""
    if losses is not None:
        return since_best(losses)
    return next((count for count, rise in enumerate(reversed(rises)) if not rise > threshold), len(rises))


def decide(rises: Sequence[float], losses: Sequence[float] | None, threshold: float, patience: int) -> tuple[bool, str]:
    """Decide whether a training should stop after its last validation.

    Args:
        rises: How far the signal has risen, at each validation that found it.
        losses: The validation loss at each validation; None stops by the rise alone.
        threshold: What the last rise has to exceed.
        patience: How many validations it has to have `waited`.

    Returns:
        Whether to stop, and the reason as a predicate of the signal.
    """
    count = waited(rises, losses, threshold)
    stops = bool(rises) and rises[-1] > threshold and count >= patience
    validations = f"{count} validation{'s' * (count != 1)}"
    if losses is None:
        return stops, f"has been above {threshold:g} for {validations}"
    return stops, f"is above {threshold:g} and the validation loss has not improved for {validations}"
