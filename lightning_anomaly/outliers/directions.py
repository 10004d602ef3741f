"""Principal components of many wide vectors, and squared Mahalanobis distances along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_OVERSAMPLING = 14
_ITERATIONS = 4
_MAX_PRODUCTS = 1024  # vectors up to which all products with each other are taken at once
_ROWS, _COLUMNS = 128, 1024  # of the vectors that are multiplied at a time, so that these stay in the caches
_MIN_VARIANCE = 1e-12  # along a direction, in units of the largest: more than rounding leaves


class Directions(NamedTuple):
    """Directions in which vectors vary most.

    Attributes:
        mean: Mean of the vectors `(V,)`.
        axes: Their first principal components, each divided by the standard deviation along it `(V, k)`, without those
            in which nothing varies.
    """

    mean: Tensor
    axes: Tensor

    def mahalanobis_squared(self, vectors: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances from the mean in these directions `(n,)` of vectors `(n, V)`."""
        return ((vectors - self.mean) @ self.axes).square().sum(1)


class Vectors:
    """Vectors `(N, V)` whose principal components are computed for one selection of them after another.

    Vectors are on the CPU and of order one. A randomized singular value decomposition with power iterations is used
    (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithm 4.4). Its random numbers belong
    to the values, not to the vectors, and its iterations only need products of the vectors with each other. Of few long
    vectors these are computed once for all selections; of many or short ones that would take longer than to multiply by
    the vectors in each iteration.
    """

    def __init__(self, vectors: Tensor) -> None:
        few, long = len(vectors) <= _MAX_PRODUCTS, 2 * vectors.shape[1] > len(vectors)
        self.vectors = vectors.double() if few and not long else vectors
        self._products = _products(vectors) if few and long else None
        self._sketches: dict[int, Tensor] = {}

    def directions(self, selected: Tensor, count: int) -> Directions:
        """Compute at most `count` directions of the vectors at positions `selected` `(n,)`."""
        vectors = self.vectors[selected]
        weights = self._weights(selected, count).to(vectors)
        return Directions(vectors.mean(0).float(), (vectors.T @ weights).float())

    def mahalanobis_squared(self, selected: Tensor, count: int) -> Tensor:
        """Compute the squared distances `(N,)` of all vectors in the directions of those selected."""
        if self._products is None:
            return self.directions(selected, count).mahalanobis_squared(self.vectors.float())
        projected = self._products[:, selected] @ self._weights(selected, count)
        return (projected - projected[selected].mean(0)).square().sum(1).float()

    def _weights(self, selected: Tensor, count: int) -> Tensor:
        """Weights `(n, k)` whose sums of the selected vectors are the axes.

        To multiply in the precision of the vectors is enough; squares, which tell what varies, are in double precision.
        """
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
        """What multiplies a basis `(n, k)` by P, the products of the selected vectors, and gives `basis^T P basis`."""
        if self._products is None:
            vectors = _centered(self.vectors[selected])

            def spread(basis: Tensor) -> Tensor:
                along = (vectors.T @ basis.to(vectors)).double()
                return along.T @ along

            return lambda basis: vectors @ (vectors.T @ basis), spread
        products = _centered(_centered(self._products[selected][:, selected]).T)
        return lambda basis: products @ basis, lambda basis: basis.T @ products @ basis

    def _sketch(self, count: int) -> Tensor:
        """Products `(N, k)` of the vectors with random ones."""
        if count not in self._sketches:
            shape, generator = (self.vectors.shape[1], count + _OVERSAMPLING), torch.Generator().manual_seed(0)
            start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            sketch = self.vectors @ start.to(self.vectors)
            self._sketches[count] = sketch if self._products is None else sketch.double()
        return self._sketches[count]


def _products(vectors: Tensor) -> Tensor:
    """Products of vectors with each other `(N, N)`, each pair once, in double precision."""
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for columns in torch.split(vectors, _COLUMNS, 1):
        part = columns.double()
        for first in range(0, len(part), _ROWS):
            last = first + _ROWS
            products[first:last, :last].addmm_(part[first:last], part[:last].T)
    return products.tril() + products.tril(-1).T


def _centered(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)
