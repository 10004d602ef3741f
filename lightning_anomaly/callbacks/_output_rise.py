"""The signal of the output for early stopping: how far the area has risen above the lowest level that it had."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["WINDOW", "output_rise"]

WINDOW = 3  # validations that make a level


def output_rise(areas: Sequence[float]) -> float:
    """The mean of the last three values less the lowest mean of three consecutive ones, the last included.

    The images are the same at each validation, so what is special about their division stays: a network that knows
    nothing of them may be at 0.47 or 0.53 of 1,024 and 1,024 all the time. Its own lowest level is therefore what later
    ones are compared with, and not one half.

    Args:
        areas: `confidence_auc` at each validation, oldest first.

    Returns:
        The rise, at least 0; 0 before there are three values.

    Examples:
        >>> output_rise([0.53, 0.53, 0.53])
        0.0
        >>> round(output_rise([0.53, 0.53, 0.53, 0.56, 0.59]), 3)
        0.03
    """
    means = [fmean(areas[end - WINDOW : end]) for end in range(WINDOW, len(areas) + 1)]
    return means[-1] - min(means) if means else 0.0
