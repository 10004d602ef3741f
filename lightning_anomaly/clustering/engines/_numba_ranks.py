"""Ranks among sorted values, compiled by numba: one row of knots at a time, in which all samples are sought at once.

What decides the speed: a binary search without branches, whose every step is an inner loop over the samples, of which
the compiler makes vector code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_anomaly.clustering.engines._numba_em import compile_loop
from lightning_anomaly.clustering.threads import in_threads

__all__ = ["look_up"]

_Array = npt.NDArray[np.float32]
_BLOCK = 256  # samples at a time: what is kept of them fits into a first-level cache beside 512 knots


@compile_loop(nogil=True, cache=True)
def _look_up(
    values: _Array, knots: _Array, beyond: npt.NDArray[np.int32], tables: _Array, found: _Array, first: int, last: int
) -> None:
    count = knots.shape[1]
    half = 1  # the largest power of 2 that is at most the number of knots
    while 2 * half <= count:
        half *= 2
    own, left = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    for v in range(first, last):
        row, upper = knots[v], beyond[v]
        for begin in range(0, values.shape[0], _BLOCK):
            n = min(_BLOCK, values.shape[0] - begin)
            # What lies before `left` is smaller than the value; unsigned indices need no test for negative ones.
            for i in range(n):
                own[i] = values[begin + i, v]
                left[i] = np.int32(count - half) if row[half - 1] < own[i] else np.int32(0)
            step = half // 2
            while step > 0:
                for i in range(n):
                    left[i] += np.int32(step) if row[np.uint32(left[i] + step - 1)] < own[i] else np.int32(0)
                step //= 2
            for i in range(n):
                left[i] += np.int32(1) if row[np.uint32(left[i])] < own[i] else np.int32(0)
            for i in range(n):
                place = np.uint32(min(left[i], count - 1))
                left[i] += upper[place] if row[place] == own[i] else left[i]
            for t in range(tables.shape[0]):
                for i in range(n):
                    found[t, v, begin + i] = tables[t, np.uint32(left[i])]


def look_up(values: _Array, knots: _Array, beyond: npt.NDArray[np.int32], tables: _Array) -> _Array:
    """See `Engine`, for values `(n, V)`: `(T, V, n)`."""
    found = np.empty((len(tables), *values.T.shape), np.float32)

    def work(first: int, last: int) -> None:
        _look_up(values, knots, beyond, tables, found, first, last)

    in_threads(work, values.shape[1])
    return found
