"""Where the values of a filter are: its rows in the parameters of its convolution and of the norms behind that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# Norms that treat each channel by itself.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@dataclass
class Rows:
    """The part of one tensor that belongs to some filters of a layer, and what masking does to it."""

    owner: nn.Module
    name: str  # of the tensor in `owner`
    index: tuple[Tensor, ...]  # where the rows are in it, one entry per indexed axis
    masked: bool = True  # or else they are only remembered
    saved: Tensor | None = None  # what they were before, if that is known

    @property
    def tensor(self) -> Tensor:
        """The whole tensor as it is now: `load_state_dict(assign=True)` replaces it."""
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor

    def read(self) -> Tensor:
        """Copy the values."""
        return self.tensor.detach()[self._index_on(self.tensor.device)]

    def zero(self) -> None:
        """Set the rows to 0, if they are masked."""
        if self.masked:
            self._write(self.tensor, 0.0)

    def zero_gradient(self) -> None:
        """Set the rows of the gradient to 0, if there is one."""
        if self.masked and self.tensor.grad is not None:
            self._write(self.tensor.grad, 0.0)

    def zero_state(self, state: Mapping[str, Any]) -> None:
        """Set the rows of every tensor of the same shape in the tensor's optimizer state to 0."""
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == self.tensor.shape:
                self._write(value, 0.0)

    def restore(self) -> None:
        """Write the saved values back."""
        if self.saved is not None:
            self._write(self.tensor, self.saved.to(self.tensor))

    @torch.no_grad()
    def _write(self, tensor: Tensor, value: Tensor | float) -> None:
        tensor[self._index_on(tensor.device)] = value

    def _index_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.index[0].device != device:
            self.index = tuple(part.to(device) for part in self.index)
        return self.index


def conv_rows(layer: str, conv: Any, filters: list[int]) -> list[Rows]:
    """Find the rows of a convolution of any kind that belong to some of its filters.

    They are those of the weight, or of the two parts that `parametrizations.weight_norm` makes it of, and of the bias.
    Raises a ValueError, which names the `layer`, if its weight is computed from other tensors in another way.
    """
    channels = (torch.tensor(filters, device="cpu"),)
    bias = [] if conv.bias is None else [Rows(conv, "bias", channels)]
    made: Any = conv.parametrizations if is_parametrized(conv) else {}
    steps = [(name, type(step).__name__) for name, chain in made.items() for step in chain]
    if not steps and all(isinstance(part, nn.Parameter) for part in (conv.weight, conv.bias) if part is not None):
        index: tuple[Tensor, ...] = channels
        if conv.transposed:
            # Their weight is (inputs, outputs per group, ...): a filter is one column of its group's inputs.
            inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
            group, column = channels[0] // outputs, channels[0] % outputs
            index = (group[:, None] * inputs + torch.arange(inputs, device="cpu"), column[:, None])
        return [Rows(conv, "weight", index), *bias]
    by_weight_norm = steps == [("weight", "_WeightNorm")] and not conv.transposed
    if not by_weight_norm or made["weight"].original0.shape[:1] != (conv.out_channels,):
        raise ValueError(
            "Parameter `filters` should name layers with a plain weight, or with `parametrizations.weight_norm` that "
            f"has one norm per filter (`dim=0`). Found '{layer}' with {[name for name, _ in conv.named_parameters()]}."
        )
    # weight = g * v / |v|: g carries the zero.
    parts = made["weight"]
    return [Rows(parts, "original0", channels), Rows(parts, "original1", channels, False), *bias]


def filters_first(layer: Any) -> Tensor:
    """Return the weight of a convolution of any kind or of a linear layer, its filters in front: `(F, ...)`."""
    weight: Tensor = layer.weight
    if getattr(layer, "transposed", False):  # (inputs, outputs per group, ...)
        weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight


def norm_rows(norm: Any, channels: list[int]) -> list[Rows]:
    """Find the rows of weight, bias and running statistics that belong to some channels of a Batch- or InstanceNorm."""
    index = (torch.tensor(channels, device="cpu"),)
    # Statistics are remembered, as those of a map of zeros would blow up a restored filter. Without a weight the output
    # in evaluation is (0 - running mean) / std: it is 0 where the running mean is.
    masked = {"weight": True, "bias": True, "running_mean": norm.weight is None, "running_var": False}
    return [Rows(norm, part, index, value) for part, value in masked.items() if getattr(norm, part) is not None]


def zero_rows(module: Any) -> Tensor:
    """Whether each output channel of a layer is 0 whatever its input, `(F,)` bool on the CPU."""
    parts: list[Any]
    if isinstance(module, CHANNEL_NORMS):
        # Without a weight, a map of zeros stays one where the running mean is 0 or there is none.
        parts = [module.running_mean] if module.weight is None else [module.weight, module.bias]
        count = module.num_features
    else:
        weight = filters_first(module)
        parts, count = [weight, module.bias], len(weight)
    zero = torch.ones(count, dtype=torch.bool, device="cpu")
    for part in parts:
        if part is not None:
            zero &= (part.detach() == 0).reshape(count, -1).all(1).cpu()
    return zero
