"""Plain torch, many filters at a time, on the device of the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_anomaly.clustering.engines import _torch_em, _torch_kmeans
from lightning_anomaly.clustering.engines.base import Engine
from lightning_anomaly.clustering.threads import torch_in_threads

__all__ = ["ENGINE", "TorchEngine"]


class TorchEngine(Engine):
    """Batched operations."""

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        return _torch_kmeans.kmeans_plus_plus(points, uniform)

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """See `Engine`."""
        return _torch_kmeans.kmeans(points, centres)

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
        """See `Engine`."""
        return _torch_kmeans.cluster_moments(points, labels, n_clusters)

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
        fitted = _torch_em.em(points, weights, means, factors, max_iter, tol, reg_covar)
        return tuple(part.reshape(*weights.shape[:2], *part.shape[1:]) for part in fitted)

    def each(self, work: Callable[[int], Tensor], numbers: Sequence[int], points: Tensor) -> list[Tensor]:
        """A number for each thread, that with the most components first, as it takes the longest."""
        return torch_in_threads(work, reversed(numbers), like=points)[::-1]

    def device(self, maps: torch.device) -> torch.device:
        """Where the maps are, unless there are no doubles there, or torch is to give the same bits each time.

        On a GPU it has no cumulative sum that does, and refuses.
        """
        exact = torch.are_deterministic_algorithms_enabled()
        refuses = maps.type == "cuda" and exact and not torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.device("cpu") if maps.type == "mps" or refuses else maps


ENGINE = TorchEngine
