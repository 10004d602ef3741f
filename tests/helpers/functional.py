"""A network in one line: layers, and a function that is its forward pass."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Net(nn.Module):
    """A module whose forward pass is a given function of it and its inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)
