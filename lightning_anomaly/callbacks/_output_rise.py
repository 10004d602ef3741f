"""The signal of the output for early stopping: how far the gap has risen above the lowest level that it had."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["WINDOW", "output_rise"]

WINDOW = 3  # validations that make a level


def output_rise(gaps: Sequence[float]) -> float:
    """The mean of the last three values less the lowest mean of three consecutive ones, the last included.

    The images are the same at each validation, so what is special about their division stays: a network that knows
    nothing of them may be surer of the one kind all the time. Its own lowest level is therefore what later ones are
    compared with, and not 0.

    Args:
        gaps: `confidence_log_odds_gap` at each validation, oldest first.

    Returns:
        The rise, at least 0; 0 before there are three values.

    Examples:
        >>> output_rise([0.02, 0.02, 0.02])
        0.0
        >>> round(output_rise([0.02, 0.02, 0.02, 0.05, 0.08]), 3)
        0.03
    """
    means = [fmean(gaps[end - WINDOW : end]) for end in range(WINDOW, len(gaps) + 1)]
    return means[-1] - min(means) if means else 0.0
