"""Every filter's feature maps as points in two dimensions: a principal component analysis per filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import Engine
from lightning_anomaly.clustering.threads import ranges, rows_at_a_time, torch_in_threads

__all__ = ["Reduction", "reduce_maps"]


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
    fit = max_memory_mb * 2**20 // (4 * 8 * samples * pixels * threads)
    step = max(1, min(fit, 2 * rows_at_a_time(samples * pixels, maps)))

    def reduce(maps: Tensor) -> tuple[Tensor, ...]:
        # A compact copy first: where channels come last, a filter's values lie far apart until then.
        parts = [_reduce(own.clone(), rounding, engine) for own in torch.split(maps, step)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    by_filter = maps.transpose(0, 1)
    found = torch_in_threads(reduce, *ranges(by_filter), like=maps)
    return Reduction(*(torch.cat(part) for part in zip(*found, strict=True)))


def _reduce(maps: Tensor, rounding: float, engine: Engine) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]
    rows = rows.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    largest = torch.linalg.vector_norm(rows, torch.inf, (1, 2))  # NaN if any is
    finite = largest.isfinite()
    if not finite.all():
        rows[~finite] = 0
    rows /= torch.where(finite & (largest > 0), largest, 1)[:, None, None]
    rows -= _each(lambda row: row.mean(0, keepdim=True), rows)
    total = _each(_sum_of_squares, rows)
    constant = finite & (total <= rounding**2 * rows[0].numel())
    live = (finite & ~constant).nonzero()[:, 0]
    points = rows.new_zeros(len(rows), rows.shape[1], 2)
    explained = rows.new_zeros(len(rows))
    if len(live):
        scores, axes = engine.pca(rows if len(live) == len(rows) else rows[live])
        scores = scores * _signs(axes)
        spread = (_each(_sum_of_squares, scores[..., 0]) / rows.shape[1]).sqrt()
        points[live] = scores / spread[:, None, None]
        explained[live] = (_each(_sum_of_squares, scores) / total[live]).clamp(max=1)
    return points, explained, constant, finite


def _each(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The results of a function of every filter's own slice of `(F, ...)`.

    Not all filters at once: how torch splits a sum, and with it the last bits of the result, may depend on how
    many there are.
    """
    return torch.stack([function(row) for row in rows])


def _sum_of_squares(row: Tensor) -> Tensor:
    return row.square().sum()


def _signs(axes: Tensor) -> Tensor:
    """Signs `(F, 1, 2)` that make each axis's largest loading positive, as scikit-learn does; axes are `(F, P, 2)`."""
    largest = axes.abs().argmax(1, keepdim=True)
    return torch.where(axes.gather(1, largest) < 0, -1.0, 1.0).to(axes.dtype)
