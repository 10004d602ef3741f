"""What an analysis found in one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.verdicts.rare import DEAD, LIVE, NONFINITE

__all__ = ["LayerReport", "join_layers", "layer_from_dict", "layer_to_dict"]


@dataclass(frozen=True, eq=False)
class LayerReport:
    """The filters of one layer; tensors are on the CPU.

    Attributes:
        verdicts: `"normal"`, `"anomaly"`, `"dead"` (the same map for every probe sample) or `"nonfinite"` (NaN or
            infinity somewhere in its maps), one for each of F filters.
        n_components: Components K of the clustering shown `(F,)`: the one with the largest Calinski-Harabasz index, for
            an anomaly filter among those that show its outliers. 0 where nothing was clustered.
        calinski_harabasz: Its index `(F,)`.
        smallest_share: Share of the probe samples in its smallest cluster `(F,)`, 0 to 1.
        labels: Its clusters `(F, N)`.
        points: What was clustered: scores on two principal components, in units of the first one's standard deviation
            `(F, N, 2)`.
        outliers: Whether each probe sample is an outlier of each filter `(F, N)`.
        isolated: Whether each filter sets each probe sample apart from all others `(F, N)`, see `isolated_samples`.
        explained: Fraction of the maps' variance that the two components hold `(F,)`, 0 to 1.
        sparsity: Fraction of the maps' values that are at most 0 `(F,)`, 0 to 1.
        map_size: Sides of a map in the network (pixels).
        analysed_size: Sides of the map that was analysed, smaller where maps were pooled (pixels).
        outlier_scores: How far each probe sample is from the others by all the layer's filters `(N,)`, see
            `outliers/scores.py`; empty in a report from before there were any.
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
    analysed_size: tuple[int, ...]
    outlier_scores: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu"))

    def filters(self, verdict: str) -> list[int]:
        """The filters with a verdict."""
        return [index for index, found in enumerate(self.verdicts) if found == verdict]

    def outliers_of(self, filter_index: int) -> list[int]:
        """The probe samples that are outliers of a filter."""
        found: list[int] = self.outliers[filter_index].nonzero()[:, 0].tolist()
        return found

    @property
    def isolated_filters(self) -> list[int]:
        """The filters that set any sample apart."""
        found: list[int] = self.isolated.any(1).nonzero()[:, 0].tolist()
        return found


_TENSORS = {
    "n_components": torch.int64,
    "calinski_harabasz": torch.float64,
    "smallest_share": torch.float64,
    "labels": torch.int64,
    "points": torch.float32,
    "outliers": torch.bool,
    "isolated": torch.bool,
    "explained": torch.float64,
    "sparsity": torch.float64,
}


def join_layers(parts: Sequence[LayerReport]) -> LayerReport:
    """One report of the filters of several on the same layer, in their order."""
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, Any] = {key: torch.cat([getattr(part, key) for part in parts]) for key in _TENSORS}
    return replace(parts[0], verdicts=tuple(verdict for part in parts for verdict in part.verdicts), **tensors)


def layer_to_dict(layer: LayerReport) -> dict[str, Any]:
    """Plain Python values."""
    tensors = {key: getattr(layer, key).tolist() for key in _TENSORS}
    sizes = {"map_size": list(layer.map_size), "analysed_size": list(layer.analysed_size)}
    scores = {"outlier_scores": layer.outlier_scores.tolist()}
    return {"verdicts": list(layer.verdicts), **tensors, **sizes, **scores}


def layer_from_dict(values: Mapping[str, Any], n_samples: int) -> LayerReport:
    """The report of N samples that `layer_to_dict` was called on, also if an earlier version was."""
    unknown = set(values["verdicts"]) - {*LIVE, DEAD, NONFINITE}
    if unknown:
        raise ValueError(f"unknown verdicts {unknown}")
    filters = len(values["verdicts"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("outliers", "isolated"), (filters, n_samples))
    for key, *rest in (("points", 2), ("labels",)):  # only the first of several processes has them
        shapes[key] = (filters, n_samples if any(values[key]) else 0, *rest)
    # Also of no samples; reports of earlier versions do not know which filters set samples apart.
    values = {"isolated": [[False] * len(row) for row in values["outliers"]], **values}
    scores = torch.tensor(values.get("outlier_scores", []), dtype=torch.float32, device="cpu")
    return LayerReport(
        verdicts=tuple(values["verdicts"]),
        map_size=tuple(values["map_size"]),
        analysed_size=tuple(values["analysed_size"]),
        outlier_scores=scores.reshape(n_samples if len(scores) else 0),
        **{
            key: torch.tensor(values[key], dtype=dtype, device="cpu").reshape(shapes.get(key, (filters,)))
            for key, dtype in _TENSORS.items()
        },
    )
