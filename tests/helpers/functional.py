"""Networks in one line, as after training, and their states."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SEED = int(os.environ.get("FIXTURE_SEED", "0"))  # of what helpers and fixtures train; tests hold for any other too


class Net(nn.Module):
    """A module whose forward pass is a given function of the module and its inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


def lived_in(model: nn.Module) -> nn.Module:
    """Set weights and statistics of norms as after training: none is 0 or 1."""
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data = 0.2 * torch.randn(tensor.shape, generator=generator)
            for tensor in (module.weight, module.running_var):
                if tensor is not None:
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
