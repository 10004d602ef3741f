"""Remove masked filters for good, with Torch-Pruning from the extra `compact`."""

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
from lightning_anomaly.images.random_state import isolated_torch_state
from lightning_anomaly.images.source import tensors_in
from lightning_anomaly.pruning.filter_rows import zero_rows
from lightning_anomaly.pruning.norms import call_model, zero_channels
from lightning_anomaly.tables import listed

# Accepted difference of outputs, relative to the largest, or in roundings for half precision: shorter sums round
# differently.
_TOLERANCE, _EPSILONS = 1e-4, 8
# Torch-Pruning's kinds of nodes: layers with weights to cut, and operations on single channels.
_LAYERS = {"CONV", "DEPTHWISE_CONV", "LINEAR", "BN", "IN"}
_CHANNELWISE = {"ELEMENTWISE", "PRELU", "CONCAT", "SPLIT", "RESHAPE", "UNBIND", "EXPAND", "SLICE"}


def compact(model: nn.Module, example_input: Any) -> nn.Module:
    """Copy a model without its masked filters: smaller and faster, with the same outputs up to rounding.

    Removes the filters whose weight and bias are zero, as `mask_filters` leaves them. Their BatchNorm channels and the
    weights that later layers apply to their output go with them. A filter stays if its output is added to that of an
    unmasked filter (residual connections), goes through a norm across channels, is an output of the model, or is not 0
    where a later layer uses it (as behind a sigmoid). It also stays if its convolution is grouped but not depthwise, or
    if Torch-Pruning cannot follow it. A warning counts the filters that stay. Layers that the call with `example_input`
    does not reach keep their size.

    Args:
        model: The model, which is not changed.
        example_input: Input to call the model with, on its device; a tuple for several arguments.

    Returns:
        The smaller model, with the train/eval flags and `requires_grad` of the original.

    Raises:
        ImportError: If Torch-Pruning is not installed; it comes with the extra `compact`.
        ValueError: If Torch-Pruning cannot follow the model, or the smaller model fails or gives other outputs, because
            the model also depends on its channels outside of its layers.

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
    shapes = [tuple(tensor.shape) for tensor in tensors_in(arguments)]
    if not shapes or any(0 in shape for shape in shapes):
        found = listed(shapes) if shapes else type(example_input).__name__
        raise ValueError(f"Parameter `example_input` should be tensors of at least one sample. Found {found}.")
    n_masked = sum(_count_zero_filters(model).values())
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    smaller = copy.deepcopy(model)
    with evaluating(smaller), torch.inference_mode(False), torch.enable_grad(), compiled_models_eager():
        smaller.requires_grad_(True)  # Torch-Pruning follows gradients
        expected, silent = _observe(smaller, arguments)
        returned: set[Any] = set()

        def differentiable_outputs(net: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
            with isolated_torch_state():
                tensors = [tensor for tensor in tensors_in(net(*inputs)) if tensor.grad_fn is not None]
            returned.update(tensor.grad_fn for tensor in tensors)
            return tensors

        try:
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(smaller, clone_inputs(arguments), forward_fn=differentiable_outputs, verbose=False)
            for module in select_layers(smaller).values():
                if module in graph.module2node:
                    with suppress(Exception):  # a failure only keeps the filters of this layer
                        _remove(graph, module, silent, returned)
        except Exception as error:  # Torch-Pruning follows most models, but not all
            raise ValueError(
                f"Parameter `model` should be one that Torch-Pruning can follow. Found a {type(model).__name__}, on "
                f"which it failed: {error!r}."
            ) from error
        _compare(smaller, arguments, expected)
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(trainable[name])
    if staying := _count_zero_filters(smaller):
        warnings.warn(
            f"{sum(staying.values())} of {n_masked} masked filters stay: other filters or the model's output share "
            "their channels, or later layers may mix channels or not preserve zeros: "
            f"{listed([f'{count} of {name!r}' for name, count in staying.items()])}.",
            stacklevel=2,
        )
    return smaller


def _count_zero_filters(model: nn.Module) -> dict[str, int]:
    """Count the filters of each convolution that are zero, without convolutions that have none."""
    counts = {name: int(zero_rows(module).sum()) for name, module in select_layers(model).items()}
    return {name: count for name, count in counts.items() if count}


def _observe(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, dict[nn.Module, Tensor]]:
    """Return the output, and which input channels of each convolution and linear layer were always 0, bool `(C,)`."""
    silent: dict[nn.Module, Tensor] = {}

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = args[0] if args else kwargs["input"]
        zero = zero_channels(inputs.detach(), -1 if isinstance(module, nn.Linear) else 1).cpu()
        silent[module] = silent.get(module, zero) & zero

    layers = [module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    output = call_model(model, arguments)
    for hook in hooks:
        hook.remove()
    return output, silent


def _remove(graph: Any, conv: nn.Module, silent: dict[nn.Module, Tensor], returned: Collection[Any]) -> None:
    """Remove the zero filters of a convolution whose output is unused, with their channels in other layers."""
    from torch_pruning import prune_conv_out_channels

    filters: list[int] = zero_rows(conv).nonzero()[:, 0].tolist()
    while filters:
        group = graph.get_pruning_group(conv, prune_conv_out_channels, filters)
        needed: set[int] = set()
        for item in group.items:
            removable = _removable(graph, item, silent, returned).tolist()
            needed |= {root for root, free in zip(item.root_idxs, removable, strict=True) if not free}
        if not needed:
            break
        filters = [index for index in filters if index not in needed]
    if not filters or not graph.check_pruning_group(group):
        return
    for item in group.items:
        module = item.dep.target.module
        if not graph.is_out_channel_pruning_fn(item.dep.handler):
            staying = torch.ones(len(silent[module]), dtype=torch.bool, device="cpu")
            staying[item.idxs] = False
            silent[module] = silent[module][staying]
    group.prune()


def _removable(graph: Any, item: Any, silent: Mapping[nn.Module, Tensor], returned: Collection[Any]) -> Tensor:
    """Return whether each channel that a group removes from one of its members is unused, bool `(C,)`."""
    node, module, channels = item.dep.target, item.dep.target.module, item.idxs
    never = torch.zeros(len(channels), dtype=torch.bool, device="cpu")
    kind = node.type.name
    if kind in _LAYERS and (is_parametrized(module) or not isinstance(module.weight, nn.Parameter | None)):
        return never
    if not graph.is_out_channel_pruning_fn(item.dep.handler):  # these are input channels
        ungrouped = kind == "LINEAR" or (kind == "CONV" and module.groups == 1)
        return silent[module][channels] if ungrouped and module in silent else never
    if not node.outputs or node.grad_fn in returned or (kind == "CONV" and module.groups > 1):
        return never
    if kind in _CHANNELWISE:
        return ~never
    return zero_rows(module)[channels] if kind in _LAYERS else never


def _compare(model: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
    """Raise ValueError if the model does not give the expected output."""
    try:
        outputs = tensors_in(call_model(model, arguments))
        types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        tolerance = max(_TOLERANCE, *(_EPSILONS * torch.finfo(dtype).eps for dtype in types))
        for output, target in zip(outputs, tensors_in(expected), strict=True):
            atol = float(tolerance * target.abs().max()) if target.is_floating_point() and target.numel() else 0.0
            torch.testing.assert_close(output, target, rtol=0.0, atol=atol, equal_nan=True)
    except Exception as error:  # the user's model may raise anything
        raise ValueError(
            "Parameter `model` should use the channels of its filters in its layers only, and draw no random numbers "
            f"per channel. Without the masked filters it fails or its output differs: {error}"
        ) from error
