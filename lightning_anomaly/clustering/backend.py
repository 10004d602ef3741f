"""What the numbers are computed with: numba's compiled loops or plain torch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["compiled_for", "has_numba"]


@cache
def has_numba() -> bool:
    """Whether numba can be imported; it comes with the extra `lightning-anomaly[fast]`."""
    return find_spec("numba") is not None


def compiled_for(points: Tensor, compiled: bool | None) -> bool:
    """Decide what runs: the compiled loops take float64 on the CPU, where numba is installed.

    Args:
        points: The points to cluster.
        compiled: True or False decide; None takes the compiled loops where they can run.

    Raises:
        ValueError: If `compiled` is True and they cannot run.
    """
    possible = has_numba() and points.device.type == "cpu" and points.dtype == torch.float64
    if compiled and not possible:
        raise ValueError(
            "Parameter `compiled` should be True only with numba installed and float64 points on the CPU. "
            f"Found {points.dtype} on {points.device}, numba {'installed' if has_numba() else 'missing'}."
        )
    return possible if compiled is None else compiled
