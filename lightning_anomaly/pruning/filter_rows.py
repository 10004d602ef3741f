"""The rows of a filter in the parameters of its convolution and of the norms that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Norms that do not mix channels.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@dataclass
class FilterRows:
    """The rows of one tensor that belong to some filters of a layer."""

    owner: nn.Module
    name: str  # of the tensor in `owner`
    index: tuple[Tensor, ...]  # of the rows, one entry per indexed axis

    @property
    def tensor(self) -> Tensor:
        """The whole tensor, looked up each time because `load_state_dict(assign=True)` replaces it."""
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor

    def read(self) -> Tensor:
        """Copy the rows."""
        return self.tensor.detach()[self._index_on(self.tensor.device)]

    @torch.no_grad()
    def zero(self, like: Tensor) -> None:
        """Zero the rows of the tensor, or of one of its shape, such as its gradient."""
        like[self._index_on(like.device)] = 0.0

    def _index_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if self.index[0].device != device:
            self.index = tuple(part.to(device) for part in self.index)
        return self.index


def conv_rows(layer: str, conv: Any, filters: list[int]) -> list[FilterRows]:
    """Find the rows of weight and bias of some filters; raise ValueError if these are no plain parameters."""
    if not all(isinstance(part, nn.Parameter) for part in (conv.weight, conv.bias) if part is not None):
        raise ValueError(
            "Parameter `filters` should name layers with a plain weight and bias, not with parametrized ones. Found "
            f"'{layer}' with {[name for name, _ in conv.named_parameters()]}."
        )
    channels = torch.tensor(filters, device="cpu")
    index: tuple[Tensor, ...] = (channels,)
    if conv.transposed:
        # The weight is (inputs, outputs per group, ...): a filter is one column of its group's inputs.
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        group, column = channels // outputs, channels % outputs
        index = (group[:, None] * inputs + torch.arange(inputs, device="cpu"), column[:, None])
    rows = [FilterRows(conv, "weight", index)]
    if conv.bias is not None:
        rows.append(FilterRows(conv, "bias", (channels,)))
    return rows


def norm_rows(norm: Any, channels: list[int]) -> list[FilterRows]:
    """Find the rows of weight and bias of some channels of a BatchNorm or InstanceNorm."""
    index = (torch.tensor(channels, device="cpu"),)
    # Without a weight the output in evaluation is (0 - running mean) / std, so the running mean has to be 0.
    parts = ("running_mean",) if norm.weight is None else ("weight", "bias")
    return [FilterRows(norm, part, index) for part in parts if getattr(norm, part) is not None]
