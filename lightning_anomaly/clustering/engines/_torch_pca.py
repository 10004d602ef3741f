"""Principal components in torch: many filters at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["pca"]

_EXACT_SIZE = 24  # up to this many pixels (or samples) a full eigendecomposition is cheaper than iterating
_BLOCK = 8  # directions iterated at once; the eight largest eigenvalues may be close without slowing the first two
_ROUNDS = 12
_TOLERANCE = 1e-12
_LINE = 8  # values in a cache line


def pca(rows: Tensor) -> tuple[Tensor, Tensor]:
    """See `Engine.pca`: by the eigenvectors of the smaller of the two Gram matrices."""
    samples, pixels = rows.shape[1:]
    if pixels == 1:
        return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
    # What BLAS and LAPACK round depends on where a matrix lies in memory: zeros put every filter on whole cache lines.
    rows = functional.pad(rows, (0, -pixels % _LINE, 0, -samples % _LINE))
    if samples < pixels:
        values, vectors = _leading(rows @ rows.transpose(1, 2))
        scores = vectors * values.clamp(min=0).sqrt()[:, None]
        axes = rows.transpose(1, 2) @ vectors
    else:
        _, axes = _leading(rows.transpose(1, 2) @ rows)
        scores = rows @ axes
    return scores[:, :samples], axes


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
