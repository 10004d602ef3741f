"""How well a network does on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.capture.hooks import evaluating

__all__ = ["evaluate", "logits_of"]


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits `(N, classes)` of images `(N, C, H, W)` in evaluation mode, without gradients."""
    with evaluating(network), torch.no_grad():
        return torch.cat([network(batch) for batch in torch.split(images, 256)])


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy."""
    logits = logits_of(network, images)
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return functional.cross_entropy(logits.double(), labels).item(), accuracy
