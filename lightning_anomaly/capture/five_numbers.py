"""The compiled part of `map_statistics`: each map is read while it lies in the cache."""

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
_Doubles = npt.NDArray[np.float64]
_VALUES = 2**19  # in each part of the maps, which are worth the start of a thread
_Integers = npt.NDArray[np.signedinteger[Any]]


def five_numbers(maps: Tensor, windows: Sequence[int]) -> Tensor:
    """Compute what `map_statistics` gives `(N, F, 5)`, of maps `(N, F, ...)` on the CPU in float32 or float64.

    `windows` are the sides of those by which they are pooled.
    """
    places = np.zeros(1, np.int64)  # in which cell of the pooled map each pixel lies
    for size, window in zip(maps.shape[2:], windows, strict=True):
        places = (places[:, None] * -(-size // window) + np.arange(size) // window).ravel()
    width, window = (maps.shape[-1], windows[-1]) if windows else (1, 1)
    found = torch.empty(*maps.shape[:2], 5, dtype=maps.dtype, device="cpu")
    values, numbers = maps.contiguous().view(-1, len(places)).numpy(), found.view(-1, 5).numpy()
    integer = np.int32 if values.dtype == np.float32 else np.int64
    largest = np.iinfo(integer)
    shape = places[::width] // -(-width // window), np.bincount(places).astype(np.float64), width, window
    order = integer(largest.max), integer(largest.bits - 1)

    def describe(first: int) -> None:
        part, described = values[first : first + size], numbers[first : first + size]
        _describe(part, part.view(integer), *shape, *order, described, described.view(integer))

    size = max(1, _VALUES // len(places))
    for _ in torch_in_threads(describe, range(0, len(values), size), maps.device):
        pass
    return found


@compile_loop(fastmath={"contract", "reassoc"}, error_model="numpy")
def _deviation(values: _Floats, mean: float) -> float:
    squares = 0.0
    for i in range(values.size):
        distance = values[i] - mean
        squares += distance * distance
    deviation: float = np.sqrt(squares / values.size)
    return deviation


@compile_loop()
def _extremes(bits: _Integers, most: int, shift: int) -> tuple[int, int]:
    """The largest and the smallest, as integers in the same order, which vector code can compare; NaN is beyond all."""
    first = bits[0] ^ ((bits[0] >> shift) & most)
    largest, smallest = first, first
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> shift) & most)
        largest = max(largest, key)
        smallest = min(smallest, key)
    return largest ^ ((largest >> shift) & most), smallest ^ ((smallest >> shift) & most)


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _describe(
    maps: _Floats,
    bits: _Integers,
    rows: _Integers,
    counts: _Doubles,
    width: int,
    window: int,
    most: int,
    shift: int,
    found: _Floats,
    found_bits: _Integers,
) -> None:
    """Fill in the five numbers of maps `(M, P)`, whose bits are given as well, for integers to compare.

    Each of the rows of `width` pixels is in one of the `rows` of the pooled map, whose cells hold `counts` pixels.
    """
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
        found[m, 0] = mean
        found[m, 1] = deviation
        found_bits[m, 2], found_bits[m, 3] = _extremes(bits[m], most, shift)
        found[m, 4] = deviation if counts.size == x.size else _deviation(cells, cells.mean())
