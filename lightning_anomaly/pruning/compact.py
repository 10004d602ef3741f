"""Masked filters removed for good, by Torch-Pruning, which the extra `compact` brings."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_anomaly.capture.hooks import compiled_models_eager, evaluating
from lightning_anomaly.capture.layers import CONVOLUTIONS, select_layers
from lightning_anomaly.capture.probe import clone_inputs
from lightning_anomaly.images.random_state import isolated_random_state
from lightning_anomaly.images.source import tensors_in
from lightning_anomaly.pruning.filter_rows import zero_rows
from lightning_anomaly.pruning.norms import call_model
from lightning_anomaly.tables import listed

# How far outputs may be apart (of the largest), as sums of other lengths round differently, and in half precision more.
_TOLERANCE, _EPSILONS = 1e-4, 8
# Torch-Pruning's kinds of nodes: layers with weights that can be cut, and what works on each channel by itself.
_LAYERS = {"CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "IN"}
_CHANNELWISE = {"ELEMENTWISE", "PRELU", "CONCAT", "SPLIT", "RESHAPE", "UNBIND", "EXPAND", "SLICE"}


def compact(model: nn.Module, example_input: Any) -> nn.Module:
    """Copy a model without its masked filters: smaller and faster, with the same outputs up to rounding.

    Removed are the filters whose weight and bias are zero, as `mask_filters` leaves them, with their BatchNorm channels
    and the weights behind them that take their output, where nothing else lives in their channels. A filter stays where
    its output is added to that of a filter that is not masked (residual connections), goes through a norm across
    channels, comes from a grouped convolution or is an output of the model, or where Torch-Pruning cannot follow it; a
    warning says how many stay and where. Layers that this call does not reach, as those of a training alone, keep their
    size.

    Args:
        model: The model, which stays as it is.
        example_input: What to call it with, on its device, to see how layers are connected; a tuple for several
            arguments.

    Returns:
        The smaller model, with train/eval flags and `requires_grad` as in the given one.

    Raises:
        ImportError: If Torch-Pruning is not installed, which the extra `compact` brings.
        ValueError: If Torch-Pruning cannot follow the model at all, or it depends on its channels in a way that is not
            seen in its layers, so that the smaller model fails or gives other outputs.

    Examples:
        >>> from lightning_anomaly.pruning.mask import mask_filters
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> mask = mask_filters(model, {"0": [2, 5]})
        >>> compact(model, torch.ones(1, 3, 8, 8))
        Sequential(
          (0): Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Conv2d(6, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    import torch_pruning

    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    masked = _zero_filters(model)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    smaller = copy.deepcopy(model)
    with evaluating(smaller), torch.inference_mode(False), torch.enable_grad(), compiled_models_eager():
        smaller.requires_grad_(True)  # Torch-Pruning follows gradients
        expected, silent = _observe(smaller, arguments)
        returned: set[Any] = set()

        def differentiable(net: nn.Module, given: tuple[Any, ...]) -> list[Tensor]:
            with isolated_random_state():
                tensors = [tensor for tensor in tensors_in(net(*given)) if tensor.grad_fn is not None]
            returned.update(tensor.grad_fn for tensor in tensors)
            return tensors

        try:
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(smaller, clone_inputs(arguments), forward_fn=differentiable, verbose=False)
            for module in select_layers(smaller).values():
                if module in graph.module2node:
                    with suppress(Exception):  # where it fails, filters stay, but not those of other layers
                        _remove(graph, torch_pruning.prune_conv_out_channels, module, silent, returned)
        except Exception as error:  # it knows most models, but not all
            raise ValueError(
                f"Parameter `model` should be one that Torch-Pruning can follow. Found a {type(model).__name__}, on "
                f"which it failed: {error!r}."
            ) from error
        _compare(smaller, arguments, expected)
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(learns[name])
    staying = {name: len(filters) for name, filters in _zero_filters(smaller).items()}
    if staying:
        warnings.warn(
            f"{sum(staying.values())} of {sum(map(len, masked.values()))} masked filters stay, as other filters or the "
            "model's output share their channels, or what is behind them may mix channels or make something of zeros: "
            f"{listed([f'{count} of {name!r}' for name, count in staying.items()])}.",
            stacklevel=2,
        )
    return smaller


def _zero_filters(model: nn.Module) -> dict[str, list[int]]:
    """`{layer: [filter, ...]}` of the filters without any weight, layers without any left out."""
    found = {name: zero_rows(module).nonzero()[:, 0].tolist() for name, module in select_layers(model).items()}
    return {name: filters for name, filters in found.items() if filters}


def _observe(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, dict[nn.Module, Tensor]]:
    """The model's output, and of every convolution and linear layer which inputs were exactly 0, `(C,)` bool."""
    silent: dict[nn.Module, Tensor] = {}

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs["input"]
        zero = (given.detach().movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1) == 0).all(1).cpu()
        silent[module] = silent[module] & zero if module in silent else zero

    layers = [module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    output = call_model(model, arguments)
    for hook in hooks:
        hook.remove()
    return output, silent


def _remove(
    graph: Any, prune: Any, conv: nn.Module, silent: dict[nn.Module, Tensor], returned: Collection[Any]
) -> None:
    """Remove those zero filters of a convolution that leave no trace, and what hangs on them in other layers."""
    filters: list[int] = zero_rows(conv).nonzero()[:, 0].tolist()
    group, traced = None, set(filters)
    while filters and traced:
        group = graph.get_pruning_group(conv, prune, filters)
        traced = set()
        for item in group.items:
            free = _free(graph, item, silent, returned)
            traced |= {root for root, goes in zip(item.root_idxs, free, strict=True) if not goes}
        filters = [index for index in filters if index not in traced]
    if group is None or not filters or not graph.check_pruning_group(group):
        return
    for item in group.items:
        module = item.dep.target.module
        if not graph.is_out_channel_pruning_fn(item.dep.handler):
            left = torch.ones(len(silent[module]), dtype=torch.bool, device="cpu")
            left[item.idxs] = False
            silent[module] = silent[module][left]
    group.prune()


def _free(graph: Any, item: Any, silent: Mapping[nn.Module, Tensor], returned: Collection[Any]) -> list[bool]:
    """Whether each channel that a group takes from one of its members may go without a trace."""
    node, module = item.dep.target, item.dep.target.module
    never = [False] * len(item.idxs)
    kind = node.type.name
    if kind in _LAYERS and (is_parametrized(module) or not isinstance(module.weight, nn.Parameter | None)):
        return never
    if not graph.is_out_channel_pruning_fn(item.dep.handler):  # a layer that takes the channels
        ungrouped = kind == "LINEAR" or (kind == "CONV" and module.groups == 1)
        found: list[bool] = silent[module][item.idxs].tolist() if ungrouped and module in silent else never
        return found
    if not node.outputs or node.grad_fn in returned:
        return never
    if kind in _CHANNELWISE:
        return [True] * len(item.idxs)
    if kind == "CONV" and module.groups > 1:
        return never
    zero: list[bool] = zero_rows(module)[item.idxs].tolist() if kind in _LAYERS else never
    return zero


def _compare(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
    """Raise ValueError if the model does not give the expected output."""
    try:
        found = tensors_in(call_model(model, arguments))
        types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        tolerance = max(_TOLERANCE, *(_EPSILONS * torch.finfo(dtype).eps for dtype in types))
        for one, other in zip(found, tensors_in(expected), strict=True):
            scale = tolerance * other.abs().max() if other.is_floating_point() and other.numel() else 0.0
            torch.testing.assert_close(one, other, rtol=0.0, atol=float(scale), equal_nan=True)
    except Exception as error:  # also whatever the user's model raises
        raise ValueError(
            "Parameter `model` should depend on the channels of its filters through its layers alone, and draw no "
            f"random number for each of them. Without the masked filters its output is another one or none: {error}"
        ) from error
