"""A small network and its images, without Lightning."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

DAMAGED = [3, 40, 61]  # over-exposed images: outliers of nearly every filter


def network(norm: bool = True) -> nn.Sequential:
    """Use `norm=False` for uneven shards: DDP exchanges the buffers of a BatchNorm in every step, so processes wait."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


def images(n: int, side: int = 8) -> TensorDataset:
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    y = (x.mean((1, 2, 3)) > 0.5).long()
    x[[i for i in DAMAGED if i < n]] *= 20
    return TensorDataset(x, y)
