"""Keep some maps of each filter, to look at later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.network.layer_maps import LayerMaps, pool_maps

if TYPE_CHECKING:
    from lightning_anomaly.filters.layer_report import LayerReport

_MAP_SIDE = 8  # longest side of a map (pixels)
_MAP_BYTES = (1_800_000, 18_000_000)  # smallest and largest room for all maps in a page, where a byte holds two values
_FILTER_BYTES = 700  # room for a filter, within these bounds
_STRIP = 8  # samples with the largest means, and with the smallest


class KeptMaps(NamedTuple):
    """Some maps of a layer's filters, on the CPU.

    Of a volume the middle slice is kept. Signals have a height of one, single values also a width of one. Values 0
    to 255 span the range of the filter's ordinary maps, so that one over-exposed image does not darken all others.
    """

    # In order: a filter's outliers, its most and least active samples, then others spread evenly over the probe.
    samples: Tensor  # the samples whose maps are kept `(F, M)`
    maps: Tensor  # uint8 `(F, M, height, width)`
    most: Tensor  # samples with the largest mean of a map `(F, S)`, the largest first
    least: Tensor  # samples with the smallest mean `(F, S)`, the smallest first


def keep_maps(layers: Mapping[str, LayerReport], maps: Mapping[str, LayerMaps]) -> dict[str, KeptMaps]:
    """Keep some maps of each filter of the analyzed layers."""
    n_filters = sum(len(layer.outliers) for layer in layers.values())
    room = min(_MAP_BYTES[1], max(_MAP_BYTES[0], _FILTER_BYTES * n_filters)) // max(1, n_filters)
    return {name: _keep_layer_maps(maps[name].maps, layer.outliers, room) for name, layer in layers.items()}


def _keep_layer_maps(maps: Tensor, outliers: Tensor, room: int) -> KeptMaps:
    """Keep as many maps of each filter, out of `(N, F, ...)`, as fit into `room` bytes of a page."""
    count, filters = maps.shape[:2]
    if maps.ndim == 5:
        maps = maps[:, :, maps.shape[2] // 2]
    maps = pool_maps(maps.cpu(), _MAP_SIDE).nan_to_num(0.0, 0.0, 0.0).transpose(0, 1)  # (F, N, ...)
    shape = (1, 1, *maps.shape[2:])[-2:]
    maps = maps.reshape(filters, count, *shape)
    activity = maps.mean((2, 3), dtype=torch.float64)
    most = activity.argsort(dim=1, descending=True, stable=True)[:, :_STRIP]
    least = activity.argsort(dim=1, stable=True)[:, :_STRIP]
    score = (1 - even_order(count).argsort().double() / count).repeat(filters, 1)
    score.scatter_(1, torch.cat([most, least], 1), 2.0)
    score = torch.where(outliers, 3.0, score)
    size = max(1, room // (4 + -(-math.prod(shape) // 2)))
    samples = score.argsort(dim=1, descending=True, stable=True)[:, :size]
    low = _map_quantile(maps.amin((2, 3)), 0.05)
    high = _map_quantile(maps.amax((2, 3)), 0.95)
    # A filter that is zero for nearly all samples has no ordinary range: then 255 is its largest value.
    high = torch.where(high > low, high, maps.amax((1, 2, 3))[:, None, None, None])
    chosen = maps.gather(1, samples[..., None, None].expand(-1, -1, *shape))
    codes = ((chosen - low) / (high - low).clamp_min(1e-30)).clamp(0, 1).mul(255).round().to(torch.uint8)
    # A slice would keep its whole tensor alive, here and in every file that stores the report.
    samples, most, least = (part.contiguous() for part in (samples, most, least))
    return KeptMaps(samples, codes, most, least)


def _map_quantile(values: Tensor, fraction: float) -> Tensor:
    """Return a quantile of each row of `(F, N)`, as `(F, 1, 1, 1)`."""
    place = round(fraction * (values.shape[1] - 1))
    return values.kthvalue(place + 1, 1).values[:, None, None, None]


def even_order(count: int) -> Tensor:
    """Order the numbers below `count` so that the first few, however many, are spread evenly."""
    return (torch.arange(count, dtype=torch.float64, device="cpu") * (math.sqrt(5) - 1) / 2).frac().argsort()
