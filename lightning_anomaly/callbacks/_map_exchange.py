"""The maps of several processes, each of which has those of some samples, go to the ones that analyse their filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_anomaly.callbacks._exchange import agree, exchange
from lightning_anomaly.callbacks._shares import filter_ranges, sample_places, scorers
from lightning_anomaly.capture.maps import STATISTICS, LayerMaps

__all__ = ["ToldLayer", "exchange_maps"]


@dataclass(frozen=True)
class ToldLayer:
    """What a process tells of its maps of a layer, see `LayerMaps`; `shape` is that of a sample's maps `(F, ...)`."""

    count: int
    size: tuple[int, ...] | None
    problem: str | None
    dtype: torch.dtype | None
    shape: tuple[int, ...] | None
    zeros: Tensor | None

    @classmethod
    def of(cls, layer: LayerMaps) -> ToldLayer:
        """What is to be told of a layer."""
        dtype, shape = (layer.batches[0].dtype, tuple(layer.batches[0].shape[1:])) if layer.batches else (None, None)
        zeros = None if layer.zeros is None else layer.zeros.cpu()
        return cls(layer.count, layer.size, layer.problem, dtype, shape, zeros)

    @property
    def filters(self) -> int:
        """Number of filters; 0 if this process has no maps of them."""
        return self.shape[0] if self.shape else 0

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to be the same in all processes."""
        return self.size, self.dtype, self.shape


def exchange_maps(
    maps: Mapping[str, LayerMaps], told: Sequence[Mapping[str, ToldLayer]], limit: int
) -> dict[str, LayerMaps]:
    """The maps of this process's filters, in the order in which one process would have seen the samples.

    Layer by layer, and what has been sent is dropped, so that a process never holds much more than its own maps. All
    processes call it.

    Args:
        maps: This process's maps; none are left.
        told: What each process told of its layers.
        limit: Number of samples to keep of all.

    Returns:
        The maps by layer `(N, F, ...)`, F the number of this process's filters, which may be zero. With those of a
        layer whose outlier scores are this process's are the statistics of all its filters.

    Raises:
        Exception: If the layers differ between processes or one fails, in all of them; see `agree`.
    """
    if any(list(own) != list(told[0]) for own in told):
        raise RuntimeError(f"The layers differ between processes: {[list(own) for own in told]}.")
    joined: dict[str, LayerMaps] = {}
    usable: dict[str, tuple[Any, ...]] = {}
    for name in maps:
        problem = next((own[name].problem for own in told if own[name].problem is not None), None)
        kinds = {own[name].kind for own in told if own[name].shape is not None}
        if problem is None and len(kinds) > 1:
            problem = "its maps differ between processes"
        joined[name] = LayerMaps(problem=problem)
        if problem is None and kinds:
            usable[name] = next(iter(kinds))
    scoring = scorers({name: shape[0] for name, (_, _, shape) in usable.items()}, len(told))
    failure: Exception | None = None
    for name, (size, dtype, shape) in usable.items():
        layers = [own[name] for own in told]
        route = _Route(shape, sample_places([layer.count for layer in layers], limit), scoring[name])
        came = exchange(partial(route.parts, maps[name]), route.lengths, dtype, failure)
        maps[name].batches.clear()
        maps[name].statistics.clear()
        try:
            joined[name] = route.joined(came, size)
            zeros = torch.stack([layer.zeros for layer in layers if layer.zeros is not None]).sum(0)
            # Sparsity is that of all samples seen, which may be a few more than those kept.
            share = joined[name].count / sum(layer.count for layer in layers)
            joined[name].zeros = zeros[slice(*route.filters)].double() * share
        except Exception as error:
            failure = error
    agree(failure)
    return joined


@dataclass(frozen=True)
class _Route:
    """How the maps of a layer travel.

    Attributes:
        shape: Shape of a sample's maps `(F, ...)`.
        places: Where the samples of each process go, see `sample_places`.
        scorer: The process that gets the statistics of all filters.
    """

    shape: tuple[int, ...]
    places: Sequence[Tensor]
    scorer: int

    @property
    def _ranges(self) -> list[tuple[int, int]]:
        return filter_ranges(self.shape[0], len(self.places))

    @property
    def filters(self) -> tuple[int, int]:
        """The filters that this process analyses, from the first up to the second number."""
        return self._ranges[dist.get_rank()]

    @property
    def _widths(self) -> tuple[int, int]:
        """How many values of maps and of statistics this process gets of each sample."""
        first, last = self.filters
        scores = dist.get_rank() == self.scorer
        return (last - first) * math.prod(self.shape[1:]), scores * self.shape[0] * len(STATISTICS)

    @property
    def lengths(self) -> list[int]:
        """How much comes from each process."""
        return [len(places) * sum(self._widths) for places in self.places]

    def parts(self, layer: LayerMaps) -> list[Tensor]:
        """What goes to each process: the maps of its filters, then the statistics, flat."""
        samples = len(self.places[dist.get_rank()])
        if not samples:
            return [torch.empty(0)] * len(self.places)
        parts = []
        for rank, (first, last) in enumerate(self._ranges):
            part = torch.cat([batch[:, first:last] for batch in layer.batches])[:samples].flatten()
            if rank == self.scorer:
                part = torch.cat([part, torch.cat(layer.statistics)[:samples].flatten()])
            parts.append(part)
        return parts

    def joined(self, came: Sequence[Tensor], size: tuple[int, ...] | None) -> LayerMaps:
        """The maps out of what came from each process."""
        samples = sum(map(len, self.places))
        first, last = self.filters
        maps, statistics = (came[0].new_empty(samples, width) for width in self._widths)
        for part, places in zip(came, self.places, strict=True):
            own_maps, own_statistics = torch.split(part, [len(places) * width for width in self._widths])
            maps[places.to(part.device)] = own_maps.view(len(places), maps.shape[1])
            statistics[places.to(part.device)] = own_statistics.view(len(places), statistics.shape[1])
        layer = LayerMaps([maps.view(samples, last - first, *self.shape[1:])], samples, size)
        if statistics.numel():
            layer.statistics.append(statistics.view(samples, self.shape[0], len(STATISTICS)))
        return layer
