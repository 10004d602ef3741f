"""What is kept of the maps of a layer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

STATISTICS = ("mean", "standard deviation", "largest", "smallest", "coarse standard deviation")
SMALLEST = 3
EXTREMES = slice(2, 4)  # the largest and the smallest among them

_COARSE = 8  # largest side of a pooled map, see `pool_maps` (pixels)
_ROOM = 2**25  # bytes; the C library gives so much a memory of its own, of which only what is written is taken
_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def pool_maps(maps: Tensor, max_side: int) -> Tensor:
    """Average-pool maps `(N, F, ...)` with up to three axes of pixels where they are larger than allowed.

    No side of a map with two axes exceeds `max_side` (pixels), and one with one or three axes has at most as many
    pixels as a square of this side. Each side is divided by the smallest whole number that makes it fit. Pixels at the
    end that do not fill a window are averaged among themselves, so nothing is left out.
    """
    windows = _windows(maps, max_side)
    if max(windows, default=1) == 1:
        return maps
    pooled: Tensor = _POOLS[len(windows)](maps, windows, ceil_mode=True, count_include_pad=False)
    return pooled


def _windows(maps: Tensor, max_side: int) -> list[int]:
    """The sides of the windows that `pool_maps` averages."""
    sizes = maps.shape[2:]
    side = max(1, int(max_side ** (2 / max(1, len(sizes))) + 1e-9))
    return [-(-size // side) for size in sizes]


def map_statistics(maps: Tensor) -> Tensor:
    """Describe each map by the numbers that `STATISTICS` names `(N, F, 5)`, for outlier scores.

    Maps are `(N, F, ...)` as the layer gives them, float32 or float64: rectified ones tell less. The last number is of
    the pooled map: beside the other standard deviation it tells fine patterns, such as noise, from coarse ones.
    """
    if maps.device.type == "cpu":
        # Not above: an import of the package does without numba.
        from lightning_anomaly.capture.five_numbers import five_numbers

        return five_numbers(maps, _windows(maps, _COARSE))
    pixels = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    pooled = pool_maps(maps, _COARSE)
    deviation = pixels.std(2, correction=0)
    coarse = deviation if pooled is maps else pooled.flatten(2).std(2, correction=0)
    return torch.stack([pixels.mean(2), deviation, pixels.amax(2), pixels.amin(2), coarse], 2)


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Join tensors along the first axis; a single one is returned itself."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def keep_rows(batches: list[Tensor], rows: Tensor, most: int) -> None:
    """Append a copy of rows `(n, ...)` in float32 or float64, of which `most` may come from now on, these included.

    On the CPU those of several batches share large pieces of memory, and the last tensor of `batches` may be replaced
    by a longer one. Small tensors that stay would lie in the gaps that the model's large ones leave, and the next large
    one would not fit there any more: with ConvNeXt-base a process grew by twice the size of what it kept.
    """
    if rows.device.type != "cpu":
        batches.append(rows.clone())
        return
    room, used = (batches[-1], len(batches[-1])) if batches else (rows, sys.maxsize)
    if used + len(rows) > room.untyped_storage().nbytes() // rows[0].nbytes:
        size = max(len(rows), min(most, _ROOM // rows[0].nbytes))
        dtype = np.float64 if rows.dtype == torch.float64 else np.float32
        with torch.inference_mode(False):  # or it could be written to in this mode alone
            # NumPy's, as torch would fill it in deterministic mode: memory that is not written to yet is not taken.
            room, used = torch.from_numpy(np.empty((size, *rows.shape[1:]), dtype)), 0
        batches.append(room)
    batches[-1] = room.as_strided((used + len(rows), *rows.shape[1:]), room.stride())
    batches[-1][used:] = rows


@dataclass
class LayerMaps:
    """The maps of one layer, gathered batch by batch, on the device where the model ran."""

    batches: list[Tensor] = field(default_factory=list)  # `(n, F, ...)`, pooled, or what is kept of them
    count: int = 0  # samples gathered
    size: tuple[int, ...] | None = None  # sides of a map before pooling (pixels), None until the layer was called
    zeros: Tensor | None = None  # number of values that are at most 0 before pooling, of each filter `(F,)`
    problem: str | None = None  # why maps could not be taken, if so
    statistics: list[Tensor] = field(default_factory=list)  # see `map_statistics`, of the same maps `(n, F, 5)`

    @property
    def sparsity(self) -> Tensor:
        """Fraction of each filter's values that are at most 0 `(F,)`, on the CPU."""
        assert self.zeros is not None
        assert self.size is not None
        return self.zeros.cpu().double() / (self.count * math.prod(self.size))

    @property
    def maps(self) -> Tensor:
        """All maps `(N, F, ...)`."""
        return joined(self.batches)
