"""Gradients of single samples and of batches: how strongly they pull at a model's parameters, and how differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_anomaly.capture.hooks import compiled_models_eager, evaluating
from lightning_anomaly.checks import check_integer

__all__ = ["batch_disparity", "gradient_disparity", "gradient_norms_by_layer"]

_BATCHES = 5  # whose gradients are compared
_BATCH = 64  # samples at once where the gradients would allow more: the activations take memory too


def gradient_norms_by_layer(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    max_memory_mb: int = 256,
) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each sample's own loss with respect to each layer's trainable parameters.

    The squares of a sample's norms add up to the square of its overall norm. The model runs in evaluation mode (no
    dropout, BatchNorm with its running statistics), so a sample's gradient does not depend on the others. The model's
    flags, buffers, gradients and the global random state are left as they are.

    Args:
        model: Any model that takes one tensor, on any device.
        loss: Gives one number for outputs `(1, ...)` and targets `(1, ...)`, for example
            `torch.nn.functional.cross_entropy`.
        inputs: Samples `(N, ...)`.
        targets: Their targets `(N, ...)`.
        max_memory_mb: Bound on the memory for gradients (MiB); it decides how many samples are taken at once, at least
            one.

    Returns:
        Norms `(N,)` by layer, on the CPU, in the model's order; layers without trainable parameters are left out.

    Raises:
        ValueError: If there are no samples, not as many targets, nothing to train, a loss that is not one number, or a
            BatchNorm without running statistics.
    """
    check_integer("max_memory_mb", max_memory_mb, 1)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"Parameter `inputs` should hold samples. Found shape {tuple(inputs.shape)}.")
    if targets.ndim == 0 or len(targets) != len(inputs):
        raise ValueError(
            f"Parameter `targets` should hold one target for each of {len(inputs)} samples. "
            f"Found shape {tuple(targets.shape)}."
        )
    batch_norms = [name for name, module in model.named_modules() if _uses_batch(module)]
    if batch_norms:
        raise ValueError(
            "Parameter `model` should have running statistics in its BatchNorms: without them a sample has no gradient "
            f"of its own. Found {batch_norms}."
        )
    # With `inference_mode` on, tensors made here could not be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError("Parameter `model` should have parameters that require gradients. Found none.")
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # a forward pass may change them

        def loss_of_one(
            trained: dict[str, Tensor], kept: dict[str, Tensor], one_input: Tensor, one_target: Tensor
        ) -> Tensor:
            value = loss(functional_call(model, {**trained, **kept}, (one_input[None],)), one_target[None])
            if value.ndim:
                raise ValueError(
                    f"Parameter `loss` should give one number for one sample. Found shape {tuple(value.shape)}."
                )
            return value

        def norms_of_one(one_input: Tensor, one_target: Tensor) -> dict[str, Tensor]:
            gradients = grad(loss_of_one)(parameters, buffers, one_input, one_target)
            return {name: torch.linalg.vector_norm(gradient) for name, gradient in gradients.items()}

        norms_of_all = vmap(norms_of_one, randomness="different")
        device = next(iter(parameters.values())).device
        one = sum(p.numel() * p.element_size() for p in parameters.values())
        samples = max(1, min(_BATCH, max_memory_mb * 2**20 // (2 * one)))  # a layer's gradient may be there twice
        parts: dict[str, list[Tensor]] = {name: [] for name in parameters}
        with evaluating(model), compiled_models_eager():
            for batch in torch.split(torch.arange(len(inputs)), samples):
                found = norms_of_all(inputs[batch].to(device), targets[batch].to(device))
                for name, norms in found.items():
                    parts[name].append(norms.detach().cpu())
    squares: dict[str, Tensor] = {}
    for name, norms_of_batches in parts.items():
        square = torch.cat(norms_of_batches).square()
        layer = _layer_of(name)
        squares[layer] = squares[layer] + square if layer in squares else square
    return {layer: square.sqrt() for layer, square in squares.items()}


def _uses_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _layer_of(parameter: str) -> str:
    """The name of the layer that has a parameter, without what `torch.compile` and parametrizations add."""
    parts = [part for part in parameter.split(".")[:-1] if part != "_orig_mod"]
    return ".".join(parts[: parts.index("parametrizations")] if "parametrizations" in parts else parts)


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
