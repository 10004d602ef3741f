"""A compiled loop that pools maps and finds their extremes and zeros while they are in the cache.

Plain torch reads each map eight times from memory, which takes longer than the convolution itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly._internal.compilation import compile_loop
from lightning_anomaly._internal.threads import torch_in_threads

_Floats = npt.NDArray[np.floating[Any]]
_Integers = npt.NDArray[np.signedinteger[Any]]
_Grid = tuple[_Integers, npt.NDArray[np.float64], int, int]
_VALUES = 2**19  # in a part of the maps for one thread, so that its start is worth it


def reduce_and_pool(maps: Tensor, windows: Sequence[int], rectify: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `summarize_maps` of maps `(N, F, ...)` on the CPU; `windows` are the sides of those to average."""
    cells = np.zeros(1, np.int64)  # the cell of the pooled map in which each pixel lies
    for size, window in zip(maps.shape[2:], windows, strict=True):
        cells = (cells[:, None] * -(-size // window) + np.arange(size) // window).ravel()
    width, window = (maps.shape[-1], windows[-1]) if windows else (1, 1)
    grid = cells[::width] // -(-width // window), np.bincount(cells).astype(np.float64), width, window
    sizes = [-(-size // window) for size, window in zip(maps.shape[2:], windows, strict=True)]
    pooled = torch.empty(*maps.shape[:2], *sizes, dtype=maps.dtype, device="cpu")
    extremes = torch.empty(*maps.shape[:2], 2, dtype=maps.dtype, device="cpu")
    zeros = torch.empty(maps.shape[:2], dtype=torch.int64, device="cpu")
    values, means, ends, counts = (
        tensor.view(maps.shape[:2].numel(), -1).numpy() for tensor in (maps.contiguous(), pooled, extremes, zeros)
    )
    integer = np.int32 if values.dtype == np.float32 else np.int64

    def reduce(first: int) -> None:
        part = slice(first, first + step)
        bits = values[part].view(integer), ends[part].view(integer)
        _reduce_map(values[part], grid, rectify, means[part], ends[part], counts[part], bits)

    step = max(1, _VALUES // len(cells))
    for _ in torch_in_threads(reduce, range(0, len(values), step)):
        pass
    return pooled, extremes, zeros.sum(0)


@compile_loop()
def _map_extremes(bits: _Integers) -> tuple[int, int]:
    """Find the bits of the largest and the smallest float by comparing integers, as vectors; NaN is beyond all."""
    most, shift = np.iinfo(bits.dtype).max, bits.itemsize * 8 - 1
    first = bits[0] ^ ((bits[0] >> shift) & most)
    largest, smallest = first, first
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> shift) & most)
        largest = max(largest, key)
        smallest = min(smallest, key)
    return largest ^ ((largest >> shift) & most), smallest ^ ((smallest >> shift) & most)


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _reduce_map(
    maps: _Floats,
    grid: _Grid,
    rectify: bool,
    means: _Floats,
    ends: _Floats,
    zeros: _Integers,
    bits: tuple[_Integers, _Integers],
) -> None:
    """Fill in the cells `(M, C)`, extremes `(M, 2)` and zeros `(M, 1)` of maps `(M, P)`, from their bits."""
    # Pooled row of each row of pixels, pixels in each cell, and the widths of a map and of a window.
    rows, counts, width, window = grid
    map_bits, end_bits = bits
    sums = np.empty((rows[-1] + 1, width))  # the last row of pixels lies in the last row of cells
    for m in range(len(maps)):
        x = maps[m]
        end_bits[m, 0], end_bits[m, 1] = _map_extremes(map_bits[m])
        zero = 0
        for i in range(x.size):
            zero += x[i] <= 0
        zeros[m, 0] = zero
        if rectify and ends[m, 1] == -np.inf:  # which would become 0
            means[m] = np.nan
            continue
        sums[:] = 0.0
        for r in range(rows.size):
            total, row = sums[rows[r]], x[r * width : (r + 1) * width]
            for i in range(width):
                total[i] += 0.0 if rectify and row[i] < 0 else row[i]
        cell = 0
        for r in range(len(sums)):
            for first in range(0, width, window):
                part = 0.0
                for i in range(first, min(first + window, width)):
                    part += sums[r, i]
                means[m, cell] = part / counts[cell]
                cell += 1
