"""Every filter's feature maps as points in two dimensions: a principal component analysis per filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_anomaly.clustering.threads import ranges, torch_in_threads

__all__ = ["Reduction", "reduce_maps"]

_EXACT_SIZE = 24  # up to this many pixels (or samples) a full eigendecomposition is cheaper than iterating
_BLOCK = 8  # directions iterated at once; the eight largest eigenvalues may be close without slowing the first two
_ROUNDS = 12
_TOLERANCE = 1e-12
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


def reduce_maps(maps: Tensor, *, engine: str = "torch", max_memory_mb: int = 256) -> Reduction:
    """Reduce each filter's maps to two principal components.

    Every filter's maps are divided by their largest absolute value, so that no scale can overflow, and centred. It is
    constant if the root mean square of what remains is at most 4 units of rounding of the maps' type.

    Args:
        maps: Feature maps `(N, F, ...)`.
        engine: `"torch"`, or `"sklearn"` for `sklearn.decomposition.PCA` in a loop.
        max_memory_mb: Bound on the working memory (MiB).

    Returns:
        The points. A filter's points do not depend on the other filters.
    """
    samples = maps.shape[0]
    rounding = 4 * torch.finfo(maps.dtype).eps
    pixels = max(1, maps[:1, :1].numel())
    threads = torch.get_num_threads() if maps.device.type == "cpu" else 1
    step = max(1, max_memory_mb * 2**20 // (4 * 8 * samples * pixels * threads))

    def reduce(maps: Tensor) -> tuple[Tensor, ...]:
        parts = [_reduce(own.transpose(0, 1), rounding, engine) for own in torch.split(maps, step)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    by_filter = maps.transpose(0, 1)
    found = torch_in_threads(reduce, *ranges(by_filter), like=maps) if engine == "torch" else [reduce(by_filter)]
    return Reduction(*(torch.cat(part) for part in zip(*found, strict=True)))


def _reduce(maps: Tensor, rounding: float, engine: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        scores = _scores_sklearn(rows[live]) if engine == "sklearn" else _scores(rows[live])
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


def _scores(rows: Tensor) -> Tensor:
    """Scores `(F, N, 2)` of centred rows `(F, N, P)`, by the eigenvectors of the smaller of the two Gram matrices."""
    samples, pixels = rows.shape[1:]
    if pixels == 1:
        return torch.cat([rows, torch.zeros_like(rows)], 2)
    # What BLAS and LAPACK round depends on where a matrix lies in memory: zeros put every filter on whole cache lines.
    rows = functional.pad(rows, (0, -pixels % _LINE, 0, -samples % _LINE))
    if samples < pixels:
        values, vectors = _leading(rows @ rows.transpose(1, 2))
        scores = vectors * values.clamp(min=0).sqrt()[:, None]
        axes = rows.transpose(1, 2) @ vectors
    else:
        _, axes = _leading(rows.transpose(1, 2) @ rows)
        scores = rows @ axes
    return (scores * _signs(axes))[:, :samples]


def _signs(axes: Tensor) -> Tensor:
    """Signs `(F, 1, 2)` that make each axis's largest loading positive, as scikit-learn does; axes are `(F, P, 2)`."""
    largest = axes.abs().argmax(1, keepdim=True)
    return torch.where(axes.gather(1, largest) < 0, -1.0, 1.0).to(axes.dtype)


def _leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest eigenvalues `(F, 2)` and their vectors `(F, P, 2)` of symmetric matrices `(F, P, P)`.

    Small matrices are decomposed in full. Others by subspace iteration with Rayleigh-Ritz projection (Golub and Van
    Loan, Matrix Computations, section 8.2.4) until the residuals vanish to rounding, which a close third eigenvalue
    does not hinder; those that have not got there after some rounds are decomposed in full.
    """
    filters, size, _ = gram.shape
    values = gram.new_empty(filters, 2)
    vectors = gram.new_empty(filters, size, 2)
    todo = torch.arange(filters, device=gram.device)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None]
    gram = gram / trace[:, :, None]
    if size > _EXACT_SIZE:
        squared = gram @ gram
        power = squared @ squared  # one multiplication by it advances the iteration by four steps
        # Any start that is not orthogonal to what is sought will do; the same for every filter.
        start = torch.randn(size, _BLOCK, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        basis = start.to(gram).expand(filters, -1, -1)
        matrix = gram
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(power @ (power @ basis))[0]
            image = matrix @ basis
            ritz, rotation = torch.linalg.eigh(basis.transpose(1, 2) @ image)
            first = rotation[:, :, -2:].flip(2)
            vector, ritz = basis @ first, ritz[:, -2:].flip(1)
            residual = (image @ first - vector * ritz[:, None]).norm(dim=1).amax(1)
            done = residual <= _TOLERANCE * ritz[:, 0]
            values[todo[done]], vectors[todo[done]] = ritz[done], vector[done]
            todo, matrix, power, basis = todo[~done], matrix[~done], power[~done], basis[~done]
            if not len(todo):
                break
    if len(todo):
        exact = torch.linalg.eigh(gram[todo])
        values[todo], vectors[todo] = exact.eigenvalues[:, -2:].flip(1), exact.eigenvectors[:, :, -2:].flip(2)
    return values * trace, vectors


def _scores_sklearn(rows: Tensor) -> Tensor:
    import numpy as np
    from sklearn.decomposition import PCA

    def scores(filter_rows: Any) -> Tensor:
        pca = PCA(min(2, *filter_rows.shape), svd_solver="full")
        # Equal maps to equal points: from their differences, rounding, random starts make other clusters.
        distinct, inverse = np.unique(filter_rows, axis=0, return_inverse=True)
        points = torch.from_numpy(pca.fit(filter_rows).transform(distinct)[inverse.ravel()])
        points = points * _signs(torch.from_numpy(pca.components_).T[None])[0]
        return functional.pad(points, (0, 2 - points.shape[1]))

    return torch.stack([scores(filter_rows) for filter_rows in rows.cpu().numpy()]).to(rows)
