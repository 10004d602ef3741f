"""Where the values of a filter are: its rows in the parameters of its convolution and of the norms behind that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
# Norms that treat each channel by itself.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


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
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor

    def read(self) -> Tensor:
        """Copy the values."""
        with _editing():
            return self.tensor[self._index_on(self.tensor.device)]

    def is_zero(self) -> bool:
        """Whether the rows are as `zero` leaves them."""
        return self.fill is None or bool((self.read() == self.fill).all())

    def zero(self) -> None:
        """Set the rows to `fill`."""
        if self.fill is not None:
            self._write(self.tensor, self.fill)

    def zero_gradient(self) -> None:
        """Set the rows of the gradient to 0, if there is one."""
        if self.fill is not None and self.tensor.grad is not None:
            self._write(self.tensor.grad, 0.0)

    def zero_state(self, state: Mapping[str, Any]) -> None:
        """Set the rows of every floating-point tensor of the same shape in the tensor's optimizer state to 0."""
        for value in state.values():
            # Integers are codes of 8-bit optimizers, where 0 may stand for the most negative value.
            if isinstance(value, Tensor) and value.shape == self.tensor.shape and value.is_floating_point():
                self._write(value, 0.0)

    def restore(self) -> None:
        """Write the saved values back."""
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
    """Find the rows of a convolution, of any kind, that belong to some of its filters.

    Args:
        layer: The convolution's name, for errors.
        conv: The convolution, perhaps under weight_norm.
        filters: Filters from 0 to `conv.out_channels - 1`.

    Returns:
        Rows of the weight, or of weight_norm's two parts of it, and of the bias.

    Raises:
        ValueError: The layer is lazy, or its weight is computed from other tensors in a way that cannot be masked.
    """
    _refuse_lazy(layer, conv)
    channels = (torch.tensor(filters, device="cpu"),)
    bias = [] if conv.bias is None else [Rows(conv, "bias", filters, channels)]
    if _has_plain_parameters(conv):
        index: tuple[Tensor, ...] = channels
        if isinstance(conv, TRANSPOSED):
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


def _weight_norm(conv: Any) -> tuple[nn.Module, str, str] | None:
    """Where a convolution under weight_norm, new style or old, has its norms g and directions v."""
    owner: Any = conv
    g, v = "weight_g", "weight_v"
    if is_parametrized(conv):
        steps = [type(step).__name__ for chain in conv.parametrizations.values() for step in chain]
        if list(conv.parametrizations) != ["weight"] or steps != ["_WeightNorm"]:
            return None
        owner, g, v = conv.parametrizations["weight"], "original0", "original1"
    if not {g, v} <= owner._parameters.keys() or "bias" not in conv._parameters or isinstance(conv, TRANSPOSED):
        return None
    norms = getattr(owner, g)
    return (owner, g, v) if norms.shape[:1] == norms.flatten().shape == (conv.out_channels,) else None


def filters_first(layer: Any) -> Tensor:
    """Return the weight of a convolution of any kind or of a linear layer, its filters in front: `(F, ...)`."""
    weight: Tensor = layer.weight
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs per group, ...)
        weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight


@_editing()
def norm_rows(name: str, norm: Any, channels: list[int]) -> list[Rows]:
    """Find the rows of a BatchNorm or InstanceNorm that belong to some of its channels.

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
    if not _has_plain_parameters(norm):
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


def zero_rows(module: Any) -> Tensor:
    """Whether each output channel of a layer is 0 whatever its input, `(F,)` bool on the CPU."""
    parts: list[Any]
    if isinstance(module, CHANNEL_NORMS):
        # Without a weight, a map of zeros stays one where the running mean is 0 or there is none.
        parts = [module.running_mean] if module.weight is None else [module.weight, module.bias]
        count = module.num_features
    else:
        weight = filters_first(module)
        parts, count = [weight.flatten(1), module.bias], len(weight)
    zero = torch.ones(count, dtype=torch.bool, device="cpu")
    for part in parts:
        if part is not None:
            zero &= (part.detach() == 0).view(count, -1).all(1).cpu()
    return zero


def _has_plain_parameters(module: nn.Module) -> bool:
    return not is_parametrized(module) and {"weight", "bias"} <= module._parameters.keys()


def _refuse_lazy(layer: str, module: nn.Module) -> None:
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise ValueError(
            f"Parameter `filters` should name initialized layers: run the model once before. Found lazy '{layer}'."
        )


def _parameter_names(module: nn.Module) -> list[str]:
    return sorted(name for name, _ in module.named_parameters())
