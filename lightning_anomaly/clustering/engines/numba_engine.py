"""Loops compiled by numba: the fastest on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import _numba_em, _numba_kmeans, _numba_ranks
from lightning_anomaly.clustering.engines.base import Engine

__all__ = ["ENGINE"]


class NumbaEngine(Engine):
    """A filter at a time, in compiled code."""

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.kmeans_plus_plus(points.numpy(), uniform.numpy()))

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.kmeans(points.numpy(), centres.numpy()))

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        """See `Engine`."""
        return torch.from_numpy(_numba_kmeans.cluster_moments(points.numpy(), labels.numpy(), n_clusters))

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
        fitted = _numba_em.em(points.numpy(), w, mu, u, max_iter, tol, reg_covar)
        return tuple(torch.from_numpy(part).reshape(*weights.shape[:2], *part.shape[1:]) for part in fitted)

    def look_up(self, values: Tensor, knots: Tensor, beyond: Tensor, tables: Tensor) -> Tensor:
        """See `Engine`."""
        if values.device.type != "cpu":
            return super().look_up(values, knots, beyond, tables)
        arrays = (part.numpy() for part in (values.contiguous(), knots, beyond, tables))
        return torch.from_numpy(_numba_ranks.look_up(*arrays)).transpose(1, 2)


ENGINE = NumbaEngine
