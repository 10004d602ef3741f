"""Where vectors vary most, and how far each is out in these directions: principal components of many wide vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Directions", "Vectors"]

_OVERSAMPLING = 14
_ROUNDS = 4
_FEW = 1024  # vectors up to which all products with each other are taken at once
_ROWS, _COLUMNS = 128, 1024  # of the vectors that are multiplied at a time, so that these stay in the caches
_VARIES = 1e-12  # least variance along a direction, in units of the largest: more than rounding leaves


class Vectors:
    """Vectors, and how far out each is in the directions in which some of them vary most.

    Directions are found by a randomised singular value decomposition with power iterations (Halko, Martinsson and
    Tropp, "Finding structure with randomness", 2011, algorithm 4.4), whose random numbers are those of the values, not
    the vectors. Its rounds only need the vectors' products with each other. Of few vectors these are taken once, for
    every choice of some; of many that would take longer than to multiply by the vectors in each round.

    Args:
        vectors: Vectors `(N, V)` on the CPU, of order one.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors
        self._products = _products(vectors) if len(vectors) <= _FEW else None
        self._sketches: dict[int, Tensor] = {}

    @property
    def mean(self) -> Tensor:
        """The mean of each vector's values `(N,)`."""
        return self._vectors.mean(1)

    def directions(self, some: Tensor, count: int) -> Directions:
        """At most so many directions of the vectors at the positions `some` `(n,)`."""
        own = self._vectors[some].double()
        return Directions(own.mean(0).float(), (own.T @ self._components(some, count)).float())

    def lengths(self, some: Tensor, count: int) -> Tensor:
        """The lengths of all vectors in the directions of some `(N,)`, see `Directions.lengths`."""
        weights = self._components(some, count)
        if self._products is None:
            along = self._vectors.double() @ (self._vectors[some].double().T @ weights)
        else:
            along = self._products[:, some] @ weights
        return (along - along[some].mean(0)).square().sum(1).float()

    def _components(self, some: Tensor, count: int) -> Tensor:
        """Weights `(n, k)` of some vectors in the axes of their directions."""
        times = self._times(some)
        basis = torch.linalg.qr(_centred(self._sketch(count)[some]))[0]
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(times(basis))[0]
        variances, turn = torch.linalg.eigh(basis.T @ times(basis))
        variances, turn = variances.flip(0)[:count], turn.flip(1)[:, :count]
        varies = variances > _VARIES * variances[:1]
        scale: Tensor = len(some) ** 0.5 / variances[varies]
        return _centred(basis @ turn[:, varies]) * scale

    def _times(self, some: Tensor) -> Callable[[Tensor], Tensor]:
        """What multiplies by the products of some vectors, centred, with each other."""
        if self._products is None:
            own = _centred(self._vectors[some].double())
            return lambda basis: own @ (own.T @ basis)
        products = _centred(_centred(self._products[some][:, some]).T)
        return lambda basis: products @ basis

    def _sketch(self, count: int) -> Tensor:
        """Products `(N, k)` of the vectors with random ones."""
        if count not in self._sketches:
            shape, generator = (self._vectors.shape[1], count + _OVERSAMPLING), torch.Generator().manual_seed(0)
            start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            self._sketches[count] = (self._vectors @ start.to(self._vectors)).double()
        return self._sketches[count]


def _products(vectors: Tensor) -> Tensor:
    """Products of vectors with each other `(N, N)`, each pair once, in double precision."""
    products = vectors.new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in torch.split(vectors, _COLUMNS, 1):
        own = part.double()
        for first in range(0, len(own), _ROWS):
            last = first + _ROWS
            products[first:last, :last].addmm_(own[first:last], own[:last].T)
    return products.tril() + products.tril(-1).T


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)


@dataclass(frozen=True, eq=False)
class Directions:
    """Where vectors vary most.

    Attributes:
        mean: Of the vectors `(V,)`.
        axes: Their first principal components, each divided by the standard deviation along it `(V, k)`; those in which
            nothing varies are left out.
    """

    mean: Tensor
    axes: Tensor

    def lengths(self, vectors: Tensor) -> Tensor:
        """Squared Mahalanobis distances from the mean in these directions `(n,)` of vectors `(n, V)`."""
        return ((vectors - self.mean) @ self.axes).square().sum(1)

    def to(self, device: torch.device) -> Directions:
        """The same on another device."""
        return Directions(self.mean.to(device), self.axes.to(device))
