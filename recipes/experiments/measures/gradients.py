"""Gradients of single samples and of batches: their norms and their distances."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

_BATCHES = 5  # number of batches whose gradients are compared
_BATCH = 64  # most samples at once, because activations take memory too
_BYTES = 256 * 2**20  # most memory for gradients at once


def gradient_norms(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the Euclidean norm `(N,)` of the gradient of each image's cross-entropy.

    The network must have no buffers and be in evaluation mode, so that a gradient does not depend on other images.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss_of_one(trained: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(network, trained, (image[None],)), label[None])

    def norm_of_one(image: Tensor, label: Tensor) -> Tensor:
        gradients = grad(loss_of_one)(parameters, image, label).values()
        return torch.cat([gradient.flatten() for gradient in gradients]).square().sum().sqrt()

    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    at_once = max(1, min(_BATCH, _BYTES // (2 * size)))  # a layer's gradient may be stored twice
    norms: Tensor = vmap(norm_of_one, chunk_size=at_once)(images, labels)
    return norms


def batch_disparity(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Compute the mean distance between the gradients of the cross-entropy in the first five batches of images.

    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping" (2021), without their rescaling.
    """
    gradients = []
    for first in range(0, _BATCHES * batch_size, batch_size):
        batch = slice(first, first + batch_size)
        loss = functional.cross_entropy(network(images[batch]), labels[batch])
        parts = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack([(a - b).norm() for a, b in combinations(gradients, 2)]).mean().item()
