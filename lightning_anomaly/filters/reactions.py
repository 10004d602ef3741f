"""Which filters react to a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from lightning_anomaly.filters.layer_report import LayerReport


class Reaction(NamedTuple):
    """A filter that reacts to a sample."""

    layer: str
    filter: int
    isolates: bool  # or else has it in a rare cluster
    distance: float  # of the sample's point from the filter's mean (standard deviations)


def find_reactions(layers: Mapping[str, LayerReport], samples: int) -> list[list[Reaction]]:
    """List the filters that react to each sample: those that isolate it first, each kind by descending distance."""
    found: list[list[Reaction]] = [[] for _ in range(samples)]
    for name, layer in layers.items():
        filters, members = (layer.isolated | layer.outliers).nonzero(as_tuple=True)
        distances = torch.linalg.vector_norm(layer.points[filters, members].nan_to_num(0.0, 0.0, 0.0), dim=1)
        values = filters, members, layer.isolated[filters, members], distances
        for index, sample, isolates, distance in zip(*(value.tolist() for value in values), strict=True):
            found[sample].append(Reaction(name, index, isolates, distance))
    return [sorted(reactions, key=lambda reaction: (not reaction.isolates, -reaction.distance)) for reactions in found]
