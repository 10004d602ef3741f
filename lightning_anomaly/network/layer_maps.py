"""Pool the maps of a layer, and keep them with their extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def pool_maps(maps: Tensor, max_side: int) -> Tensor:
    """Average-pool maps `(N, F, ...)` in the smallest windows that leave no side above `max_side` (pixels).

    Maps with one or three axes are pooled to at most as many pixels as a square of this side. Incomplete windows at the
    end are averaged too.
    """
    windows = _pooling_windows(maps, max_side)
    if max(windows, default=1) == 1:
        return maps
    pooled: Tensor = _POOLS[len(windows)](maps, windows, ceil_mode=True, count_include_pad=False)
    return pooled


def _pooling_windows(maps: Tensor, max_side: int) -> list[int]:
    """Return the sides of the windows that `pool_maps` averages."""
    sizes = maps.shape[2:]
    side = max(1, int(max_side ** (2 / max(1, len(sizes))) + 1e-9))
    return [-(-size // side) for size in sizes]


def summarize_maps(maps: Tensor, max_side: int, rectify: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce maps `(N, F, ...)`, float32 or float64, to what an analysis needs.

    Returns:
        The maps, rectified if wanted and pooled as by `pool_maps`; the largest and the smallest value of each map
        before `(N, F, 2)`, not both finite if any value is not; and how many values of each filter are at most 0
        `(F,)`; all of them copies. A map with minus infinity, which rectification would hide, becomes NaN.
    """
    if maps.device.type == "cpu":
        from lightning_anomaly.network.map_loops import reduce_and_pool  # late, as numba takes long to import

        return reduce_and_pool(maps, _pooling_windows(maps, max_side), rectify)
    pixels = maps[..., None].flatten(2)
    extremes = torch.stack([pixels.amax(2), pixels.amin(2)], 2)
    zeros = (pixels <= 0).sum((0, 2))
    maps = maps.clamp(min=0) if rectify else maps.clone()
    if rectify:
        maps[extremes[..., 1] == -torch.inf] = torch.nan
    return pool_maps(maps, max_side), extremes, zeros


def join_batches(batches: Sequence[Tensor]) -> Tensor:
    """Join tensors along the first axis; a single one is returned itself."""
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))


@dataclass
class LayerMaps:
    """The maps of one layer, batch by batch, on the device where the model ran."""

    batches: list[Tensor] = field(default_factory=list)  # pooled `(n, F, ...)`, or their summary
    count: int = 0  # samples
    size: tuple[int, ...] | None = None  # sides of a map before pooling (pixels), None before the first call
    zeros: Tensor | None = None  # number of each filter's values that are at most 0 before pooling `(F,)`
    problem: str | None = None  # why maps could not be taken
    extremes: list[Tensor] = field(default_factory=list)  # of these maps before rectification `(n, F, 2)`

    @property
    def sparsity(self) -> Tensor:
        """Fraction of each filter's values that are at most 0 `(F,)`, on the CPU."""
        assert self.zeros is not None
        assert self.size is not None
        return self.zeros.cpu().double() / (self.count * math.prod(self.size))

    @property
    def maps(self) -> Tensor:
        """All maps `(N, F, ...)`."""
        return join_batches(self.batches)

    @property
    def nonfinite(self) -> Tensor:
        """Whether each sample's maps are NaN or infinite in a filter whose maps of most samples are finite `(N,)`."""
        broken = ~join_batches(self.extremes).isfinite().all(2)
        return broken[:, 2 * broken.sum(0) < len(broken)].any(1).cpu()

    def select(self, filters: slice) -> LayerMaps:
        """Select some filters; their batches are joined."""
        maps, extremes = ([batch[:, filters] for batch in kept] for kept in (self.batches, self.extremes))
        zeros = None if self.zeros is None else self.zeros[filters]
        return LayerMaps([join_batches(maps)], self.count, self.size, zeros, extremes=[join_batches(extremes)])

    def rows(self) -> Tensor:
        """Return the V values of each map, and its extremes, filter by filter `(F, N, V + 2)`."""
        pixels, extremes = self.maps[..., None].flatten(2), join_batches(self.extremes)
        return torch.cat([pixels.transpose(0, 1), extremes.transpose(0, 1)], 2)
