"""Loops compiled by numba, which comes with the extra `lightning-anomaly[fast]`: the fastest on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import _numba_em, _numba_kmeans, _numba_ranks
from lightning_anomaly.clustering.engines.base import Engine

__all__ = ["ENGINE"]


class NumbaEngine(Engine):
    """A filter at a time, in compiled code."""

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.kmeans_plus_plus(_array(points), uniform.numpy()))

    def kmeans(self, points: Tensor, centres: Tensor, max_iter: int) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.kmeans(_array(points), centres.numpy(), max_iter))

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.cluster_moments(_array(points), labels.numpy(), n_clusters))

    def em(
        self,
        points: Tensor,
        weights: Tensor,
        means: Tensor,
        factors: Tensor,
        *,
        max_iter: int,
        tol: float,
        reg_covar: float,
    ) -> tuple[Tensor, ...]:
        """See `Engine`."""
        w, mu, u = (tensor.flatten(0, 1).clone().numpy() for tensor in (weights, means, factors))
        fitted = _numba_em.em(_array(points), w, mu, u, max_iter, tol, reg_covar)
        return tuple(torch.from_numpy(part).reshape(*weights.shape[:2], *part.shape[1:]) for part in fitted)

    def look_up(self, values: Tensor, knots: Tensor, beyond: Tensor, tables: Tensor) -> Tensor:
        """See `Engine`."""
        if values.device.type != "cpu":
            return super().look_up(values, knots, beyond, tables)
        arrays = (part.numpy() for part in (values.contiguous(), knots, beyond, tables))
        return torch.from_numpy(_numba_ranks.look_up(*arrays)).transpose(1, 2)


def _array(points: Tensor) -> Any:
    """Points as an array of the one type that the loops are compiled for.

    Raises:
        ValueError: If they are of another.
    """
    if points.dtype != torch.float64 or points.device.type != "cpu":
        raise ValueError(
            "Parameter `points` should be float64 and on the CPU for numba's loops. "
            f"Found {points.dtype} on {points.device}."
        )
    return points.numpy()


ENGINE = NumbaEngine
