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

from lightning_anomaly.capture.maps import STATISTICS, LayerMaps
from lightning_anomaly.distributed import exchange, raise_if_any_failed
from lightning_anomaly.sharing.shares import filter_ranges, sample_places, scorers

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
) -> tuple[dict[str, LayerMaps], dict[str, Tensor]]:
    """The maps of this process's filters, in the order in which one process would have seen the samples.

    Layer by layer, and what has been sent is dropped, so that a process never holds much more than its own maps. All
    processes call it.

    Args:
        maps: This process's maps; none are left.
        told: What each process told of its layers.
        limit: Number of samples to keep of all.

    Returns:
        The maps by layer `(N, F, ...)`, F the number of this process's filters, which may be zero; and the statistics
        of all filters of the layers whose outlier scores are this process's `(N, F, 5)`.

    Raises:
        Exception: If the layers differ between processes or one fails, in all of them; see `raise_if_any_failed`.
    """
    if any(list(own) != list(told[0]) for own in told):
        raise RuntimeError(f"The layers differ between processes: {[list(own) for own in told]}.")
    joined: dict[str, LayerMaps] = {}
    statistics: dict[str, Tensor] = {}
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
            joined[name], every = route.joined(came, size)
            if route.scores:
                statistics[name] = every
            zeros = torch.stack([layer.zeros for layer in layers if layer.zeros is not None]).sum(0)
            # Sparsity is that of all samples seen, which may be a few more than those kept.
            share = joined[name].count / sum(layer.count for layer in layers)
            joined[name].zeros = zeros[slice(*route.filters)].double() * share
        except Exception as error:
            failure = error
    raise_if_any_failed(failure)
    return joined, statistics


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
    def scores(self) -> bool:
        """Whether this process scores the samples."""
        return dist.get_rank() == self.scorer

    @property
    def _widths(self) -> tuple[int, int, int]:
        """How many values this process gets of each sample: maps, their statistics, the statistics of all filters."""
        first, last = self.filters
        numbers = len(STATISTICS)
        return (
            (last - first) * math.prod(self.shape[1:]),
            (last - first) * numbers,
            self.scores * self.shape[0] * numbers,
        )

    @property
    def lengths(self) -> list[int]:
        """How much comes from each process."""
        return [len(places) * sum(self._widths) for places in self.places]

    def parts(self, layer: LayerMaps) -> list[Tensor]:
        """What goes to each process, flat: the maps of its filters, their statistics, and those of all if it scores."""
        samples = len(self.places[dist.get_rank()])
        if not samples:
            return [torch.empty(0)] * len(self.places)
        statistics = torch.cat(layer.statistics)[:samples]
        parts = []
        for rank, (first, last) in enumerate(self._ranges):
            maps = torch.cat([batch[:, first:last] for batch in layer.batches])[:samples]
            part = [maps.flatten(), statistics[:, first:last].flatten()]
            parts.append(torch.cat([*part, statistics.flatten()] if rank == self.scorer else part))
        return parts

    def joined(self, came: Sequence[Tensor], size: tuple[int, ...] | None) -> tuple[LayerMaps, Tensor]:
        """The maps out of what came from each process, and the statistics of all filters, of none without a score."""
        samples = sum(map(len, self.places))
        found = [came[0].new_empty(samples, width) for width in self._widths]
        for part, places in zip(came, self.places, strict=True):
            pieces = torch.split(part, [len(places) * width for width in self._widths])
            for whole, piece in zip(found, pieces, strict=True):
                whole[places.to(part.device)] = piece.view(len(places), whole.shape[1])
        first, last = self.filters
        maps, own, every = found
        layer = LayerMaps([maps.view(samples, last - first, *self.shape[1:])], samples, size)
        layer.statistics.append(own.view(samples, last - first, len(STATISTICS)))
        return layer, every.view(samples, -1, len(STATISTICS))
