"""Which comes first where several would do, so that neither rounding nor the samples' order has a part in it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["CLOSE", "SAME", "first_largest", "in_order", "nearest"]

SAME = 1e-9  # relative difference that is rounding, for values of order one or larger
CLOSE = 1 + 1e-3  # ratio up to which float32 cannot tell inertias apart, by far


def first_largest(values: Tensor) -> Tensor:
    """Position of the largest value along the last axis, the first of those that are equal up to rounding.

    The same clusters found twice, numbered in another way, have values that differ by rounding. Which one is chosen
    should not depend on the order of a sum.
    """
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - SAME * largest.abs().clamp(min=1)).int().argmax(-1)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index of the nearest centre, the first of equals, for `(F, N, 2)` and `(F, S, K, 2)`: `(F, S, N)`."""
    x, y = points[:, None, None].unbind(4)
    cx, cy = centres[..., None, :].unbind(4)
    squared, dy = (x - cx).square_(), y - cy
    return squared.addcmul_(dy, dy).min(2).indices  # `argmin` takes twenty times as long


def in_order(points: Tensor) -> Tensor:
    """Points in the order of their first coordinate, equals in that of their second."""
    for axis in (1, 0):
        order = points[..., axis].argsort(dim=1, stable=True)
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
    return points
