"""Reduce each filter's feature maps to points in two dimensions by principal component analysis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Points are rounded to this grid, so that equal maps give equal points. Otherwise rounding could split equal maps into
# clusters.
_GRID = 2.0**40


@dataclass(frozen=True)
class Reduction:
    """Two-dimensional points of F filters."""

    # Centered scores on the first two principal components, float64 `(F, N, 2)`, in units of the first component's
    # standard deviation over the samples; zero for filters whose maps do not vary.
    points: Tensor
    explained: Tensor  # fraction of the maps' variance that the two components explain `(F,)`
    constant: Tensor  # whether a filter's maps are the same for all samples, up to rounding `(F,)`
    finite: Tensor  # whether a filter's maps are free of NaN and infinities `(F,)`

    @property
    def varying(self) -> Tensor:
        """Whether a filter's maps are finite and not constant, so that it can be clustered `(F,)`."""
        return self.finite & ~self.constant


def reduce_maps(maps: Tensor, engine: str = "numba") -> Reduction:
    """Reduce each filter's maps `(N, F, ...)` to two principal components, independently of the other filters."""
    rounding = 4 * torch.finfo(maps.dtype).eps
    rows = (maps.flatten(2) if maps.ndim > 2 else maps[:, :, None]).transpose(0, 1)
    rows = rows.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    largest = torch.linalg.vector_norm(rows, torch.inf, (1, 2))  # NaN if any value is NaN
    finite = largest.isfinite()
    rows[~finite] = 0
    rows /= torch.where(finite & (largest > 0), largest, 1)[:, None, None]  # so that nothing overflows
    rows -= rows.mean(1, keepdim=True)
    total = torch.linalg.vector_norm(rows, dim=(1, 2)).square()
    constant = finite & (total <= rounding**2 * rows.shape[1] * rows.shape[2])
    points, explained = rows.new_zeros(*rows.shape[:2], 2), rows.new_zeros(len(rows))
    reduction = Reduction(points, explained, constant, finite)
    varying = reduction.varying
    if varying.any():
        components = principal_components
        if engine == "sklearn":
            from lightning_anomaly.filters.sklearn_estimators import sklearn_pca as components
        scores, axes = components(rows if varying.all() else rows[varying])
        loadings = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # become positive, as in scikit-learn
        scores = scores * torch.where(loadings < 0, -1.0, 1.0).to(scores)
        squares = scores.square().sum(1)
        scores /= (squares[:, :1] / rows.shape[1]).sqrt()[:, None]
        points[varying] = (scores * _GRID).round_() / _GRID
        explained[varying] = (squares.sum(1) / total[varying]).clamp(max=1)
    return reduction


def principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the scores `(F, N, 2)` of centered maps `(F, N, P)` on two components, and their axes `(F, P, 2)`.

    If P is 1, the second scores are zero. Axes have any length and either direction.
    """
    samples, pixels = rows.shape[1:]
    if pixels == 1:
        return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
    # Computes all eigenvectors: iterating for the first two took two to five times as long, for 25 to 256 pixels.
    # Scores are always products with the maps, so that equal maps give equal points.
    if samples < pixels:
        values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
        smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # positive despite rounding
        axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
    else:
        axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
    axes = axes.flip(2)
    return rows @ axes, axes
