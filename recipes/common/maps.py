"""Feature maps of a network for images, to be analysed in more ways than one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.capture.hooks import MapCapture
from lightning_anomaly.capture.layers import select_layers
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.capture.probe import run

__all__ = ["capture", "choose"]


def capture(network: nn.Module, images: Tensor, settings: AnalysisSettings) -> dict[str, LayerMaps]:
    """The maps of every convolution for images `(N, C, H, W)`."""
    taken = MapCapture(select_layers(network), rectify=settings.rectify, max_map_side=settings.max_map_side)
    run(network, images, taken)
    return taken.maps


def choose(maps: Mapping[str, LayerMaps], samples: Tensor) -> dict[str, LayerMaps]:
    """The maps of some of the samples (sparsity stays that of all)."""

    def chosen(batches: list[Tensor]) -> list[Tensor]:
        return [torch.cat(batches)[samples]] if batches else []

    return {
        name: replace(layer, batches=chosen(layer.batches), statistics=chosen(layer.statistics), count=len(samples))
        for name, layer in maps.items()
    }
