"""How differently batches pull at a network's parameters."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

_BATCHES = 5  # whose gradients are compared


def batch_disparity(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Mean distance between the gradients of the cross-entropy in the first five batches of images.

    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping" (2021), without their rescaling.
    """
    gradients = []
    for first in range(0, _BATCHES * batch_size, batch_size):
        batch = slice(first, first + batch_size)
        loss = functional.cross_entropy(network(images[batch]), labels[batch])
        parts = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack([(a - b).norm() for a, b in combinations(gradients, 2)]).mean().item()
