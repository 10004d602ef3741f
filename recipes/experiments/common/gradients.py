"""Gradients of single samples and of batches: how strongly they pull at a model's parameters, and how differently."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lightning_anomaly.capture.hooks import evaluating

__all__ = ["batch_disparity", "gradient_disparity", "gradient_norms_by_layer"]

_BATCHES = 5  # whose gradients are compared
_BATCH = 64  # samples at once where the gradients would allow more: the activations take memory too
_BYTES = 256 * 2**20  # of the gradients at once


def gradient_norms_by_layer(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each image's own cross-entropy with respect to each layer's parameters.

    The squares of an image's norms add up to the square of its overall norm. The network runs in evaluation mode, so an
    image's gradient does not depend on the others.

    Args:
        network: A network without buffers.
        images: Images `(N, ...)`.
        labels: Their labels `(N,)`.

    Returns:
        Norms `(N,)` by layer, in the network's order.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss_of_one(trained: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(network, trained, (image[None],)), label[None])

    def squares_of_one(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        squares: dict[str, Tensor] = {}
        for name, gradient in grad(loss_of_one)(parameters, image, label).items():
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0) + torch.linalg.vector_norm(gradient).square()
        return squares

    one = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    at_once = max(1, min(_BATCH, _BYTES // (2 * one)))  # a layer's gradient may be there twice
    with evaluating(network):
        batches = zip(torch.split(images, at_once), torch.split(labels, at_once), strict=True)
        parts = [vmap(squares_of_one)(*batch) for batch in batches]
    return {layer: torch.cat([part[layer] for part in parts]).sqrt() for layer in parts[0]}


def gradient_disparity(gradients: Sequence[Tensor]) -> float:
    """Mean Euclidean distance between the gradients `(P,)` of different batches.

    Forouzesh and Thiran, "Disparity Between Batches as a Signal for Early Stopping" (2021), without their rescaling.
    """
    return torch.stack([(a - b).norm() for a, b in combinations(gradients, 2)]).mean().item()


def batch_disparity(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """`gradient_disparity` of the cross-entropy in the first batches of images, in evaluation mode."""
    gradients = []
    with evaluating(network), torch.enable_grad():
        for i in range(_BATCHES):
            batch = slice(i * batch_size, (i + 1) * batch_size)
            loss = functional.cross_entropy(network(images[batch]), labels[batch])
            parts = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
            gradients.append(torch.cat([part.flatten() for part in parts]))
    return gradient_disparity(gradients)
