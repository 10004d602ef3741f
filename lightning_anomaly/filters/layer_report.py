"""The result of an analysis of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NORMAL, ANOMALY, DEAD, NONFINITE = "normal", "anomaly", "dead", "nonfinite"
CLUSTERED = (NORMAL, ANOMALY)  # verdicts on filters that were clustered


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
