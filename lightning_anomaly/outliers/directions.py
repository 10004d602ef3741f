"""Principal components of many wide vectors, and squared Mahalanobis distances along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_OVERSAMPLING = 14
_ITERATIONS = 4
_MAX_PRODUCTS = 1024  # largest number of vectors of which all inner products are computed
_ROWS, _COLUMNS = 128, 1024  # block of the vectors that is multiplied at a time, which fits the caches
_MIN_VARIANCE = 1e-12  # along a component, relative to the largest variance


class Directions(NamedTuple):
    """The first principal components of vectors.

    Attributes:
        mean: Mean of the vectors `(V,)`.
        axes: Components with variance, each divided by its standard deviation `(V, k)`.
    """

    mean: Tensor
    axes: Tensor

    def mahalanobis_squared(self, vectors: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `(n,)` of vectors `(n, V)` along these components."""
        return ((vectors - self.mean) @ self.axes).square().sum(1)


class Vectors:
    """Vectors `(N, V)` on the CPU, of which several selections need their principal components.

    These come from a randomized singular value decomposition with power iterations (Halko, Martinsson and Tropp,
    "Finding structure with randomness", 2011, algorithm 4.4), whose iterations need only inner products of the vectors.
    For few long vectors the inner products are computed once for all selections; for many or short vectors it is faster
    to multiply by the vectors in each iteration.
    """

    def __init__(self, vectors: Tensor) -> None:
        few, long = len(vectors) <= _MAX_PRODUCTS, 2 * vectors.shape[1] > len(vectors)
        self.vectors = vectors.double() if few and not long else vectors
        self._products = _products(vectors) if few and long else None
        self._sketches: dict[int, Tensor] = {}

    def directions(self, selected: Tensor, count: int) -> Directions:
        """Compute at most `count` components of the vectors at positions `selected` `(n,)`."""
        vectors = self.vectors[selected]
        weights = self._weights(selected, count).to(vectors)
        return Directions(vectors.mean(0).float(), (vectors.T @ weights).float())

    def mahalanobis_squared(self, selected: Tensor, count: int) -> Tensor:
        """Compute squared distances `(N,)` of all vectors along the components of those selected."""
        if self._products is None:
            return self.directions(selected, count).mahalanobis_squared(self.vectors.float())
        projected = self._products[:, selected] @ self._weights(selected, count)
        return (projected - projected[selected].mean(0)).square().sum(1).float()

    def _weights(self, selected: Tensor, count: int) -> Tensor:
        """Compute weights `(n, k)` by which the selected vectors add up to the axes; variances are in float64."""
        multiply, spread = self._multiplication(selected)
        basis = _centered(self._sketch(count)[selected])
        for _ in range(_ITERATIONS):
            basis = multiply(torch.linalg.qr(basis)[0])
        basis = torch.linalg.qr(basis.double())[0]
        variances, rotation = torch.linalg.eigh(spread(basis))
        variances, rotation = variances.flip(0)[:count], rotation.flip(1)[:, :count]
        varies = variances > _MIN_VARIANCE * variances[:1]
        scale: Tensor = len(selected) ** 0.5 / variances[varies]
        return _centered(basis @ rotation[:, varies]) * scale

    def _multiplication(self, selected: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return functions of a basis `(n, k)`: `P @ basis` and `basis.T @ P @ basis`, P the inner products."""
        if self._products is None:
            vectors = _centered(self.vectors[selected])

            def spread(basis: Tensor) -> Tensor:
                along = (vectors.T @ basis.to(vectors)).double()
                return along.T @ along

            return lambda basis: vectors @ (vectors.T @ basis), spread
        products = _centered(_centered(self._products[selected][:, selected]).T)
        return lambda basis: products @ basis, lambda basis: basis.T @ products @ basis

    def _sketch(self, count: int) -> Tensor:
        """Multiply the vectors by random ones `(N, k)`."""
        if count not in self._sketches:
            shape, generator = (self.vectors.shape[1], count + _OVERSAMPLING), torch.Generator().manual_seed(0)
            start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            sketch = self.vectors @ start.to(self.vectors)
            self._sketches[count] = sketch if self._products is None else sketch.double()
        return self._sketches[count]


def _products(vectors: Tensor) -> Tensor:
    """Compute inner products `(N, N)` of all pairs of vectors in float64."""
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for columns in torch.split(vectors, _COLUMNS, 1):
        part = columns.double()
        for first in range(0, len(part), _ROWS):
            last = first + _ROWS
            products[first:last, :last].addmm_(part[first:last], part[:last].T)
    return products.tril() + products.tril(-1).T


def _centered(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)
