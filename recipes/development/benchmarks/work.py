"""Networks with random weights, images of noise, and the work on them that is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from lightning_anomaly import analyze, find_outliers
from recipes.common.networks import NETWORKS, build


def network_of(name: str) -> nn.Module:
    """Build a network with random weights, on which the time of an analysis depends little."""
    torch.manual_seed(0)
    return (build(name, 3, 10) if name in NETWORKS else get_model(name)).eval()


def noise(images: int, side: int) -> Tensor:
    """Draw images of noise `(N, 3, side, side)`."""
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> None:
    """Run a network on images, in batches."""
    for batch in torch.split(images, 8 if images.shape[3] > 32 else 64):
        network(batch)


WORK: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "forward": forward,
    "analyze": partial(analyze, batch_size=8),
    "find_outliers": lambda model, images: find_outliers(images, model, progress=False),
}


def prepare(what: str, name: str, images: int, side: int) -> Callable[[], Any]:
    """Load compiled code with a small network, then return the work on a network and images."""
    WORK[what](network_of("lenet5"), noise(200, 32))
    network = network_of(name)
    return lambda: WORK[what](network, noise(images, side))
