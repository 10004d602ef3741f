"""Every filter's points clustered by mixtures of 2, 3, ... components, and the number of components chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_anomaly.clustering.em import REG_COVAR, fit_mixtures
from lightning_anomaly.clustering.engines import Engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import Reduction
from lightning_anomaly.clustering.ties import first_largest
from lightning_anomaly.settings import AnalysisSettings

__all__ = ["Clustering", "cluster_filters", "cluster_layers"]

_TOGETHER = 1000  # filters that are clustered together, of as many layers as it takes


@dataclass(frozen=True)
class Clustering:
    """Mixtures with M numbers of components for each of F filters.

    Attributes:
        n_components: The numbers of components tried, ascending `(M,)`.
        labels: Cluster of each sample `(F, M, N)`.
        calinski_harabasz: Index of each clustering `(F, M)`; 0 where all samples are in one cluster.
        best: Position in `n_components` of the clustering with the largest index, the first of those equal up to
            rounding `(F,)`.
    """

    n_components: Tensor
    labels: Tensor
    calinski_harabasz: Tensor
    best: Tensor


def cluster_layers(
    layers: Iterable[tuple[str, Reduction]], settings: AnalysisSettings, engine: Engine
) -> Iterator[tuple[str, Reduction, Clustering]]:
    """Cluster the live filters of one layer after the other.

    Consecutive layers are clustered together until there are enough filters: a small layer costs little more than the
    start of its operations, and a filter's result does not depend on the others.

    Args:
        layers: Names and points of layers with the same number of samples.
        settings: See `AnalysisSettings`.
        engine: What runs the loops.

    Yields:
        Each layer with the clusterings of its live filters.
    """
    for batch in _batches(layers):
        points = [reduction.points[reduction.live] for _, reduction in batch]
        found = cluster_filters(torch.cat(points), settings, engine)
        sizes = list(map(len, points))
        parts = (torch.split(part, sizes) for part in (found.labels, found.calinski_harabasz, found.best))
        for (name, reduction), labels, index, best in zip(batch, *parts, strict=True):
            yield name, reduction, Clustering(found.n_components, labels, index, best)


def _batches(layers: Iterable[tuple[str, Reduction]]) -> Iterator[list[tuple[str, Reduction]]]:
    """Consecutive layers on the same device, with enough filters together."""
    batch: list[tuple[str, Reduction]] = []
    filters = 0
    for name, reduction in layers:
        if batch and (filters >= _TOGETHER or batch[0][1].points.device != reduction.points.device):
            yield batch
            batch, filters = [], 0
        batch.append((name, reduction))
        filters += int(reduction.live.sum())
    if batch:
        yield batch


def cluster_filters(points: Tensor, settings: AnalysisSettings, engine: Engine) -> Clustering:
    """Fit mixtures with 2 to `settings.max_components` components to each filter's points.

    Args:
        points: Points of live filters `(F, N, 2)`, in units of their spread.
        settings: See `AnalysisSettings`.
        engine: What runs the loops.

    Returns:
        The clusterings. Fewer samples than `max_components + 1` allow fewer components; fewer than 3 allow none, which
        gives `M = 0` and `best` 0.
    """
    filters, samples = points.shape[:2]
    numbers = range(2, min(settings.max_components, samples - 1) + 1)
    # Working memory: a few arrays (F, S, N), such as the labels of all random starts; the rest works in small pieces.
    bytes_per_filter = 8 * samples * settings.n_init * 4
    step = max(1, settings.max_memory_mb * 2**20 // bytes_per_filter)
    parts = [_cluster(points[first : first + step], numbers, settings, engine) for first in range(0, filters, step)]
    labels = torch.cat([part[0] for part in parts]) if parts else points.new_zeros(0, len(numbers), samples).long()
    index = torch.cat([part[1] for part in parts]) if parts else points.new_zeros(0, len(numbers))
    best = first_largest(index) if len(numbers) else torch.zeros(filters, dtype=torch.int64, device=points.device)
    return Clustering(torch.tensor(list(numbers), dtype=torch.int64, device="cpu"), labels, index, best)


def _cluster(points: Tensor, numbers: range, settings: AnalysisSettings, engine: Engine) -> tuple[Tensor, Tensor]:
    if not len(numbers):
        return points.new_zeros(len(points), 0, points.shape[1]).long(), points.new_zeros(len(points), 0)
    centres = kmeans_plus_plus(points, settings.n_init, numbers[-1], settings.seed, engine)

    def cluster(k: int) -> Tensor:
        """Labels `(F, N)` of mixtures with k components."""
        start = engine.kmeans(points, centres[:, :, :k])[:, None]
        return fit_mixtures(
            points, *cluster_parameters(points, start, k, REG_COVAR, engine.cluster_moments), engine
        ).labels[:, 0]

    labels = torch.stack(engine.each(cluster, numbers, points), 1)
    return labels, engine.calinski_harabasz(points, labels)
