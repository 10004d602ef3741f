"""Where the values of a filter are: its rows in the parameters of its convolution and of the norms behind that."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from lightning_anomaly.capture.hooks import evaluating


@contextmanager
def _editing() -> Iterator[None]:
    """No gradients, and no tensors of inference mode, which could not be used outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclass
class Rows:
    """The part of one tensor that belongs to some filters of a layer, and what masking does to it.

    Attributes:
        owner: The module that has the tensor, which may be replaced there (`load_state_dict(assign=True)`).
        name: The tensor's attribute in `owner`.
        filters: The filters; of a norm, its channels.
        index: Where they are in the tensor, one entry per indexed axis.
        fill: What they are set to; None if they are only remembered.
        saved: What they were before; None if that is not known.
    """

    owner: nn.Module
    name: str
    filters: list[int]
    index: tuple[Tensor, ...]
    fill: float | None = 0.0
    saved: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The whole tensor as it is now."""
        # What is pruned meanwhile is made anew from this parameter before each pass (`torch.nn.utils.prune`).
        pruned: Tensor | None = self.owner._parameters.get(f"{self.name}_orig")
        tensor: Tensor = getattr(self.owner, self.name) if pruned is None else pruned
        return tensor

    def read(self) -> Tensor:
        """A copy of the values."""
        with _editing():
            return self.tensor[self._index_on(self.tensor.device)]

    def is_zero(self) -> bool:
        """Whether the rows are as `zero` leaves them."""
        return self.fill is None or bool((self.read() == self.fill).all())

    def zero(self) -> None:
        """Sets the rows to `fill`."""
        if self.fill is not None:
            self._write(self.tensor, self.fill)

    def zero_gradient(self) -> None:
        """Sets the rows of the gradient to 0, if there is one."""
        if self.fill is not None and self.tensor.grad is not None:
            self._write(self.tensor.grad, 0.0)

    def zero_state(self, state: Mapping[str, Any]) -> None:
        """Sets the rows of every floating-point tensor of the same shape in an optimizer's state of the tensor to 0."""
        for value in state.values():
            # Integers are codes of 8-bit optimizers, where 0 may stand for the most negative value.
            if isinstance(value, Tensor) and value.shape == self.tensor.shape and value.is_floating_point():
                self._write(value, 0.0)

    def restore(self) -> None:
        """Writes the saved values back."""
        if self.saved is not None:
            self._write(self.tensor, self.saved.to(self.tensor))

    def _write(self, tensor: Tensor, value: Tensor | float) -> None:
        with _editing():
            tensor[self._index_on(tensor.device)] = value

    def _index_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.index[0].device != device:
            self.index = tuple(part.to(device) for part in self.index)
        return self.index


@_editing()
def conv_rows(layer: str, conv: Any, filters: list[int]) -> list[Rows]:
    """The rows of a convolution, of any kind, that belong to some of its filters.

    Args:
        layer: The convolution's name, for errors.
        conv: The convolution, perhaps under weight_norm.
        filters: Filters from 0 to `conv.out_channels - 1`.

    Returns:
        Rows of the weight, or of weight_norm's two parts of it, and of the bias.

    Raises:
        ValueError: The layer is lazy, its weight is made from others in a way that cannot be masked per filter, or it
            does more than a convolution, so that its output is not 0 where weight and bias are.
    """
    _refuse_lazy(layer, conv)
    rows = _conv_rows(layer, conv, filters)
    if not _silent_without_weights(conv):
        raise ValueError(
            "Parameter `filters` should name layers whose output is 0 where their weight and bias are. Found "
            f"'{layer}', a {type(conv).__name__}."
        )
    return rows


def _conv_rows(layer: str, conv: Any, filters: list[int]) -> list[Rows]:
    channels = (torch.tensor(filters, device="cpu"),)
    bias = [] if conv.bias is None else [Rows(conv, "bias", filters, channels)]
    if not is_parametrized(conv) and {"weight", "bias"} <= set(conv._parameters):
        index: tuple[Tensor, ...] = channels
        if isinstance(conv, _ConvTransposeNd):
            # Their weight is (inputs, outputs per group, ...): a filter is one column of its group's inputs.
            inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
            group, column = channels[0] // outputs, channels[0] % outputs
            index = (group[:, None] * inputs + torch.arange(inputs, device="cpu"), column[:, None])
        return [Rows(conv, "weight", filters, index), *bias]
    normed = _weight_norm(conv)
    if normed is None:
        raise ValueError(
            "Parameter `filters` should name layers with a plain weight, or with weight_norm that has one norm per "
            f"filter (`dim=0`, no transposed convolution). Found '{layer}' with {_parameter_names(conv)}."
        )
    # weight = g * v / |v|: g carries the zero, and v is parked at 1, so that weight decay cannot drive it into 0 / 0.
    owner, g, v = normed
    return [Rows(owner, g, filters, channels), Rows(owner, v, filters, channels, fill=1.0), *bias]


def _silent_without_weights(conv: Any) -> bool:
    """Whether a filter is; if a convolution is of somebody's own class, one is tried out on a copy."""
    has_norms = any(isinstance(child, _NormBase) for child in conv.modules())  # as in quantization-aware training
    owners = {getattr(getattr(type(conv), name, None), "__module__", "") for name in ("forward", "_conv_forward")}
    if owners <= {nn.Conv2d.__module__, ""} and not has_norms:
        return True
    try:
        tried = copy.deepcopy(conv)
        for own in _conv_rows("", tried, [0]):
            own.zero()
        for norm in tried.modules():  # one behind the filters would make something else than 0 of them, once trained
            for tensor in (norm.bias, norm.running_mean) if isinstance(norm, _NormBase) else ():
                if tensor is not None:
                    tensor += 1
        sides = [step * (side - 1) + 1 for side, step in zip(conv.kernel_size, conv.dilation, strict=True)]
        with evaluating(tried):
            output = tried.forward(torch.ones(1, conv.in_channels, *sides).to(conv.weight))
        return bool((output[:, 0] == 0).all())
    except Exception:  # it takes something else than images
        return not has_norms


def _weight_norm(conv: Any) -> tuple[nn.Module, str, str] | None:
    """Where a convolution under weight_norm, new style or old, has its norms g and directions v."""
    owner: Any = conv
    g, v = "weight_g", "weight_v"
    if is_parametrized(conv):
        steps = [step for chain in conv.parametrizations.values() for step in chain]
        if list(conv.parametrizations) != ["weight"] or [type(step) for step in steps] != [_WeightNorm]:
            return None
        owner, g, v = conv.parametrizations["weight"], "original0", "original1"
    if not {g, v} <= set(owner._parameters) or "bias" not in conv._parameters or isinstance(conv, _ConvTransposeNd):
        return None
    norms = getattr(owner, g)
    return (owner, g, v) if norms.shape[:1] == norms.flatten().shape == (conv.out_channels,) else None


def filters_first(layer: Any) -> Tensor:
    """The weight of a convolution of any kind or of a linear layer, its filters in front: `(F, ...)`."""
    weight: Tensor = layer.weight
    if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs per group, ...)
        weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight


@_editing()
def norm_rows(name: str, norm: Any, channels: list[int]) -> list[Rows]:
    """The rows of a BatchNorm or InstanceNorm that belong to some of its channels.

    Args:
        name: The layer's name, for errors.
        norm: The layer.
        channels: Channels from 0 to `norm.num_features - 1`.

    Returns:
        Rows of the weight and bias, and of the running statistics.

    Raises:
        ValueError: The layer is lazy, or its weight is not a plain parameter.
    """
    _refuse_lazy(name, norm)
    if is_parametrized(norm) or not {"weight", "bias"} <= set(norm._parameters):
        raise ValueError(
            "Parameter `filters` should name layers that are followed by a norm with plain parameters. Found "
            f"'{name}' with {_parameter_names(norm)}."
        )
    index = (torch.tensor(channels, device="cpu"),)
    # Statistics are remembered, as those of a map of zeros would blow up a restored filter. Without a weight the output
    # in evaluation is (0 - running mean) / std: it is 0 where the running mean is.
    fills = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0 if norm.weight is None else None, "running_var": None}
    present = {attribute: fill for attribute, fill in fills.items() if getattr(norm, attribute) is not None}
    return [Rows(norm, attribute, channels, index, fill) for attribute, fill in present.items()]


def _refuse_lazy(layer: str, module: nn.Module) -> None:
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise ValueError(
            f"Parameter `filters` should name initialised layers: run the model once before. Found lazy '{layer}'."
        )


def _parameter_names(module: nn.Module) -> list[str]:
    return sorted(name for name, _ in module.named_parameters())
