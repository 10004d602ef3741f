"""The result of an analysis of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

NORMAL, ANOMALY, DEAD, NONFINITE = "normal", "anomaly", "dead", "nonfinite"
LIVE = (NORMAL, ANOMALY)  # verdicts on filters that were clustered


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
        labels: Its clusters `(F, N)`, a byte each.
        points: The clustered points `(F, N, 2)`: scores on two principal components, in units of the standard deviation
            of the first.
        outliers: Whether each probe sample is an outlier of each filter `(F, N)`.
        isolated: Whether each probe sample is isolated by each filter `(F, N)`, see `isolated_samples`.
        explained: Share of the maps' variance that the two components explain `(F,)`, 0 to 1.
        sparsity: Share of the maps' values that are at most 0 `(F,)`, 0 to 1.
        map_size: Sides of a map in the network (pixels).
        analyzed_size: Sides of the analyzed map, smaller if maps were pooled (pixels).
        nonfinite: Whether each probe sample's maps are NaN or infinite in a filter that is mostly finite `(N,)`.
        fingerprints: A hash of each filter's maps `(F,)`: a later analysis of the same maps keeps the filter's result.
    """

    verdicts: tuple[str, ...]
    n_components: Tensor
    calinski_harabasz: Tensor
    smallest_share: Tensor
    labels: Tensor
    points: Tensor
    outliers: Tensor
    isolated: Tensor
    explained: Tensor
    sparsity: Tensor
    map_size: tuple[int, ...]
    analyzed_size: tuple[int, ...]
    nonfinite: Tensor
    fingerprints: Tensor

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


_DTYPES = {
    "n_components": torch.int64,
    "calinski_harabasz": torch.float64,
    "smallest_share": torch.float64,
    "labels": torch.uint8,
    "points": torch.float32,
    "outliers": torch.bool,
    "isolated": torch.bool,
    "explained": torch.float64,
    "sparsity": torch.float64,
    "nonfinite": torch.bool,
    "fingerprints": torch.int64,
}


def join_layers(parts: Sequence[LayerReport]) -> LayerReport:
    """Join reports of consecutive filters of one layer."""
    tensors: dict[str, Any] = {key: torch.cat([getattr(part, key) for part in parts]) for key in _DTYPES}
    tensors["nonfinite"] = torch.stack([part.nonfinite for part in parts]).any(0)
    return replace(parts[0], verdicts=tuple(verdict for part in parts for verdict in part.verdicts), **tensors)


def select_filters(layer: LayerReport, filters: Tensor) -> LayerReport:
    """Select some filters of a layer, in this order."""
    tensors: dict[str, Any] = {key: getattr(layer, key)[filters] for key in _DTYPES if key != "nonfinite"}
    return replace(layer, verdicts=tuple(layer.verdicts[index] for index in filters.tolist()), **tensors)


def layer_to_dict(layer: LayerReport) -> dict[str, Any]:
    """Convert a layer to JSON values."""
    sizes = {"map_size": list(layer.map_size), "analyzed_size": list(layer.analyzed_size)}
    tensors = {key: to_plain(getattr(layer, key)) for key in _DTYPES}
    return {"verdicts": list(layer.verdicts), **sizes, **tensors}


def layer_from_dict(values: Mapping[str, Any]) -> LayerReport:
    """Restore a layer from the result of `layer_to_dict`."""
    tensors = {key: to_tensor(values[key], dtype) for key, dtype in _DTYPES.items()}
    # Only the first of several processes has points, and empty lists lose their axes.
    tensors["points"] = tensors["points"].reshape(len(values["verdicts"]), -1, 2)
    return LayerReport(
        verdicts=tuple(values["verdicts"]),
        map_size=tuple(values["map_size"]),
        analyzed_size=tuple(values["analyzed_size"]),
        **tensors,
    )


def to_plain(tensor: Tensor) -> Any:
    """Convert to nested lists, with infinite numbers and NaN as strings, which JSON does not have as numbers."""
    if tensor.isfinite().all():
        return tensor.tolist()
    if tensor.ndim == 0:
        return str(tensor.item())
    return [to_plain(part) for part in tensor]


def to_tensor(values: Any, dtype: torch.dtype) -> Tensor:
    """Convert nested lists to a tensor, with "inf" and "nan" as numbers."""
    return torch.from_numpy(np.array(values, dtype=str(dtype).removeprefix("torch.")))
