"""Every filter's feature maps as points in two dimensions: a principal component analysis per filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.clustering.threads import ranges, torch_in_threads

if TYPE_CHECKING:  # an engine knows these functions
    from lightning_anomaly.clustering.engines import Engine

__all__ = ["Reduction", "principal_components", "reduce_maps"]

_LINE = 8  # values in a cache line


@dataclass(frozen=True)
class Reduction:
    """Two-dimensional points of F filters.

    Attributes:
        points: Scores on the first two principal components, float64 `(F, N, 2)`, centred, in units of the first
            component's standard deviation over the samples. Zero for filters that are not live.
        explained: Fraction of the maps' variance that the two components hold `(F,)`.
        constant: Whether a filter's maps are the same for all samples, up to rounding `(F,)`.
        finite: Whether a filter's maps are free of NaN and infinities `(F,)`.
    """

    points: Tensor
    explained: Tensor
    constant: Tensor
    finite: Tensor

    @property
    def live(self) -> Tensor:
        """Filters with something to cluster `(F,)`."""
        return self.finite & ~self.constant


def reduce_maps(maps: Tensor, engine: Engine, *, max_memory_mb: int = 256) -> Reduction:
    """Reduce each filter's maps to two principal components.

    Every filter's maps are divided by their largest absolute value, so that no scale can overflow, and centred. It is
    constant if the root mean square of what remains is at most 4 units of rounding of the maps' type.

    Args:
        maps: Feature maps `(N, F, ...)`.
        engine: What decomposes them, on the device that it chooses.
        max_memory_mb: Bound on the working memory (MiB).

    Returns:
        The points. A filter's points do not depend on the other filters.
    """
    maps = maps.to(engine.device(maps.device))
    samples = maps.shape[0]
    rounding = 4 * torch.finfo(maps.dtype).eps
    pixels = max(1, maps[:1, :1].numel())
    threads = torch.get_num_threads() if maps.device.type == "cpu" else 1
    step = max(1, max_memory_mb * 2**20 // (4 * 8 * samples * pixels * threads))

    def reduce(maps: Tensor) -> tuple[Tensor, ...]:
        parts = [_reduce(own.transpose(0, 1), rounding, engine) for own in torch.split(maps, step)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    by_filter = maps.transpose(0, 1)
    found = torch_in_threads(reduce, *ranges(by_filter), like=maps)
    return Reduction(*(torch.cat(part) for part in zip(*found, strict=True)))


def _reduce(maps: Tensor, rounding: float, engine: Engine) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = maps.transpose(0, 1).flatten(2) if maps.ndim > 2 else maps.transpose(0, 1)[:, :, None]
    rows = rows.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    largest = rows.abs().amax((1, 2))  # NaN if any is
    finite = largest.isfinite()
    rows[~finite] = 0
    rows /= torch.where(finite & (largest > 0), largest, 1)[:, None, None]
    rows -= _each(lambda row: row.mean(0, keepdim=True), rows)
    total = _each(_sum_of_squares, rows)
    constant = finite & (total <= rounding**2 * rows[0].numel())
    live = (finite & ~constant).nonzero()[:, 0]
    points = rows.new_zeros(len(rows), rows.shape[1], 2)
    explained = rows.new_zeros(len(rows))
    if len(live):
        scores, axes = engine.pca(rows[live])
        scores = scores * _signs(axes)
        spread = (_each(_sum_of_squares, scores[..., 0]) / rows.shape[1]).sqrt()
        points[live] = scores / spread[:, None, None]
        explained[live] = (_each(_sum_of_squares, scores) / total[live]).clamp(max=1)
    return points, explained, constant, finite


def _each(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The results of a function of every filter's own slices `(F, ...)`.

    Not all filters at once: how torch splits a sum, and with it the last bits of the result, may depend on how
    many there are.
    """
    return torch.stack([function(*slices) for slices in zip(*tensors, strict=True)])


def _sum_of_squares(row: Tensor) -> Tensor:
    return row.square().sum()


def principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """See `Engine.pca`: by the eigenvectors of the smaller of the two Gram matrices.

    LAPACK computes all of them: iterating for the first two took two to five times as long, for 25 to 256 pixels.
    """
    samples, pixels = rows.shape[1:]
    if pixels == 1:
        return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
    # What BLAS and LAPACK round depends on where a matrix lies in memory: zeros put every filter on whole cache lines.
    rows = functional.pad(rows, (0, -pixels % _LINE, 0, -samples % _LINE))
    # Scores are products with the maps in both cases, so that equal maps are exactly equal points.
    if samples < pixels:
        values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
        smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # rounding may leave less than nothing
        axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
    else:
        axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
    axes = axes.flip(2)
    return (rows @ axes)[:, :samples], axes


def _signs(axes: Tensor) -> Tensor:
    """Signs `(F, 1, 2)` that make each axis's largest loading positive, as scikit-learn does; axes are `(F, P, 2)`."""
    largest = axes.abs().argmax(1, keepdim=True)
    return torch.where(axes.gather(1, largest) < 0, -1.0, 1.0).to(axes.dtype)
