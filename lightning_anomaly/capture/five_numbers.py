"""Compiled loops of `map_statistics`, which read each map while it is in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly.numba_jit import compile_loop
from lightning_anomaly.threads import torch_in_threads

_Floats = npt.NDArray[np.floating[Any]]
_Integers = npt.NDArray[np.signedinteger[Any]]
_Grid = tuple[_Integers, npt.NDArray[np.float64], int, int]
_VALUES = 2**19  # in a part of the maps for one thread, so that its start is worth it


def five_numbers(maps: Tensor, windows: Sequence[int]) -> Tensor:
    """Compute `map_statistics` `(N, F, 5)` of maps `(N, F, ...)` on the CPU in float32 or float64.

    `windows` are the sides of the windows in which maps are pooled.
    """
    cells = np.zeros(1, np.int64)  # the cell of the pooled map in which each pixel lies
    for size, window in zip(maps.shape[2:], windows, strict=True):
        cells = (cells[:, None] * -(-size // window) + np.arange(size) // window).ravel()
    width, window = (maps.shape[-1], windows[-1]) if windows else (1, 1)
    grid = cells[::width] // -(-width // window), np.bincount(cells).astype(np.float64), width, window
    result = torch.empty(*maps.shape[:2], 5, dtype=maps.dtype, device="cpu")
    values, numbers = maps.contiguous().view(-1, len(cells)).numpy(), result.view(-1, 5).numpy()
    integer = np.int32 if values.dtype == np.float32 else np.int64

    def describe(first: int) -> None:
        part, described = values[first : first + size], numbers[first : first + size]
        _describe(part, part.view(integer), grid, described, described.view(integer))

    size = max(1, _VALUES // len(cells))
    for _ in torch_in_threads(describe, range(0, len(values), size), maps.device):
        pass
    return result


@compile_loop(fastmath={"contract", "reassoc"}, error_model="numpy")
def _deviation(values: _Floats, mean: float) -> float:
    squares = 0.0
    for i in range(values.size):
        distance = values[i] - mean
        squares += distance * distance
    deviation: float = np.sqrt(squares / values.size)
    return deviation


@compile_loop()
def _extremes(bits: _Integers) -> tuple[int, int]:
    """Find the bits of the largest and the smallest float; NaN is beyond all numbers.

    Floats are compared as integers of the same order, for which there are vector instructions.
    """
    most, shift = np.iinfo(bits.dtype).max, bits.itemsize * 8 - 1
    first = bits[0] ^ ((bits[0] >> shift) & most)
    largest, smallest = first, first
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> shift) & most)
        largest = max(largest, key)
        smallest = min(smallest, key)
    return largest ^ ((largest >> shift) & most), smallest ^ ((smallest >> shift) & most)


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _describe(maps: _Floats, bits: _Integers, grid: _Grid, numbers: _Floats, number_bits: _Integers) -> None:
    """Fill in the five numbers `(M, 5)` of maps `(M, P)`; `bits` and `number_bits` show both as integers.

    The grid is the row of the pooled map in which each row of pixels lies, the number of pixels in each of its cells,
    the width of a map and that of a window.
    """
    rows, counts, width, window = grid
    cells = np.empty(counts.size)
    sums = np.empty((rows.max() + 1, width))
    for m in range(len(maps)):
        x = maps[m]
        total = 0.0
        if counts.size == x.size:
            for i in range(x.size):
                total += x[i]
        else:
            sums[:] = 0.0
            for r in range(rows.size):
                total_row, row = sums[rows[r]], x[r * width : (r + 1) * width]
                for i in range(width):
                    total_row[i] += row[i]
            cell = 0
            for r in range(len(sums)):
                for first in range(0, width, window):
                    part = 0.0
                    for i in range(first, min(first + window, width)):
                        part += sums[r, i]
                    total += part
                    cells[cell] = part / counts[cell]
                    cell += 1
        mean = total / x.size
        deviation = _deviation(x, mean)
        numbers[m, 0] = mean
        numbers[m, 1] = deviation
        number_bits[m, 2], number_bits[m, 3] = _extremes(bits[m])
        numbers[m, 4] = deviation if counts.size == x.size else _deviation(cells, cells.mean())
