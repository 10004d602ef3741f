"""The result of an analysis of one layer, and the verdicts on its filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from lightning_anomaly.filters.mixtures import Clustering

NORMAL, ANOMALY, DEAD, NONFINITE = "normal", "anomaly", "dead", "nonfinite"
CLUSTERED = (NORMAL, ANOMALY)  # verdicts on filters that were clustered
_SAME = 1e-9  # relative difference up to which values are equal; absolute for values below 1
_SHARE = 2 / 3  # of the votes, for `rule="votes"`; half of them would be less stable, see `docs/method.md`


@dataclass(frozen=True, eq=False)
class LayerReport:
    """The filters of one layer; tensors are on the CPU.

    Attributes:
        verdicts: `"normal"`, `"anomaly"`, `"dead"` (the same map for every probe sample) or `"nonfinite"` (NaN or
            infinity somewhere in its maps), one for each of F filters.
        n_components: Components K of the reported clustering `(F,)`, 0 without one. It has the largest
            Calinski-Harabasz index, for an anomaly filter among the clusterings that show its outliers.
        calinski_harabasz: Index of the reported clustering `(F,)`.
        smallest_share: Share of the probe samples in its smallest cluster `(F,)`, 0 to 1.
        clusters: Its clusters `(F, N)`, a byte each.
        points: The clustered points `(F, N, 2)`: scores on two principal components, in units of the standard deviation
            of the first.
        outliers: Whether each probe sample is an outlier of each filter `(F, N)`.
        isolated: Whether each probe sample is isolated by each filter `(F, N)`, see `isolated_samples`.
        explained: Share of the maps' variance that the two components explain `(F,)`, 0 to 1.
        sparsity: Share of the maps' values that are at most 0 `(F,)`, 0 to 1.
        map_size: Sides of a map in the network (pixels).
        analyzed_size: Sides of the analyzed map, smaller if maps were pooled (pixels).
        nonfinite: Whether each probe sample's maps are NaN or infinite in a filter that is mostly finite `(N,)`.
    """

    verdicts: tuple[str, ...]
    n_components: Tensor
    calinski_harabasz: Tensor
    smallest_share: Tensor
    clusters: Tensor
    points: Tensor
    outliers: Tensor
    isolated: Tensor
    explained: Tensor
    sparsity: Tensor
    map_size: tuple[int, ...]
    analyzed_size: tuple[int, ...]
    nonfinite: Tensor

    def filters(self, verdict: str) -> list[int]:
        """Return the filters with a verdict."""
        return [index for index, value in enumerate(self.verdicts) if value == verdict]

    def outliers_of(self, filter_index: int) -> list[int]:
        """Return the probe samples that are outliers of a filter."""
        samples: list[int] = self.outliers[filter_index].nonzero()[:, 0].tolist()
        return samples

    @property
    def isolated_filters(self) -> list[int]:
        """The filters with isolated samples."""
        filters: list[int] = self.isolated.any(1).nonzero()[:, 0].tolist()
        return filters


def join_layer_parts(parts: Sequence[LayerReport]) -> LayerReport:
    """Join reports of consecutive filters of one layer."""
    rows = [key for key, value in vars(parts[0]).items() if isinstance(value, Tensor) and key != "nonfinite"]
    joined: dict[str, Any] = {key: torch.cat([getattr(part, key) for part in parts]) for key in rows}
    joined["verdicts"] = tuple(verdict for part in parts for verdict in part.verdicts)
    return replace(parts[0], nonfinite=torch.stack([part.nonfinite for part in parts]).any(0), **joined)


def rare_samples(labels: Tensor, rare_fraction: float) -> Tensor:
    """Find the samples in rare clusters, those with at most `rare_fraction` of the samples; bool `(..., N)`."""
    # The tolerance covers only the rounding of the product.
    return _cluster_sizes(labels) <= rare_fraction * labels.shape[-1] * (1 + 1e-12)


def _cluster_sizes(labels: Tensor) -> Tensor:
    """Count the samples in the cluster of each sample `(..., N)`."""
    clusters = int(labels.max()) + 1 if labels.numel() else 1
    sizes = torch.zeros(*labels.shape[:-1], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(-1, labels, torch.ones_like(labels)).gather(-1, labels)


def outlier_samples(clustering: Clustering, rare_fraction: float, rule: str) -> Tensor:
    """Find the outlier samples of each filter, bool `(F, N)`, by a rule of `AnalysisSettings`."""
    rare, index = rare_samples(clustering.labels, rare_fraction), clustering.calinski_harabasz
    if rule == "best":
        votes = one_hot(first_largest(index), index.shape[1]).to(index)
    else:  # relative to the largest, so that no sum overflows; 0 if there is no index
        votes = index / index.amax(1, keepdim=True).clamp(min=torch.finfo(index.dtype).tiny)
    return (rare * votes[:, :, None]).sum(1) > (_SHARE + _SAME) * votes.sum(1, keepdim=True)


def verdicts_of(flagged: Tensor, constant: Tensor, finite: Tensor) -> tuple[str, ...]:
    """Return the verdict on each filter; `flagged` filters have outlier samples, for the others see `Reduction`."""
    return tuple(
        NONFINITE if not is_finite else DEAD if is_constant else ANOMALY if is_flagged else NORMAL
        for is_flagged, is_constant, is_finite in zip(flagged.tolist(), constant.tolist(), finite.tolist(), strict=True)
    )


def shown_clustering(clustering: Clustering, outliers: Tensor, rare_fraction: float) -> Tensor:
    """Choose the clustering with the largest index among those in which the most outliers are rare: position `(F,)`."""
    agreeing = (rare_samples(clustering.labels, rare_fraction) & outliers[:, None]).sum(2)
    candidates = agreeing == agreeing.amax(1, keepdim=True)
    return first_largest(torch.where(candidates, clustering.calinski_harabasz, -1.0))


def smallest_share(labels: Tensor) -> Tensor:
    """Compute the share `(...)` of the samples in the smallest occupied cluster, from labels `(..., N)`."""
    return _cluster_sizes(labels).amin(-1).double() / labels.shape[-1]


def first_largest(values: Tensor) -> Tensor:
    """Find the first position of the largest value along the last axis, up to rounding, as clusterings may be equal."""
    largest = values.amax(-1, keepdim=True)
    return (values >= largest - _SAME * largest.abs().clamp(min=1)).int().argmax(-1)
