"""The last linear layer of a model, which alone changes if the backbone is frozen."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


class HeadCapture:
    """Takes the inputs of the linear layer whose output a model returns, as a context manager around its calls."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[nn.Module, str] = {
            module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        self._calls: Counter[str] = Counter()  # since the last output of the model
        self._last: tuple[str, Any, Any] = ("", (), None)  # name, arguments and output of the last call
        self._found: set[str | None] = set()
        self._inputs: list[Tensor] = []  # of the head `(n, D)`
        self._hooks = ExitStack()

    def __enter__(self) -> HeadCapture:
        for module in self._names:
            self._hooks.callback(module.register_forward_hook(self._take).remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _take(self, module: nn.Module, args: Any, output: Any) -> None:
        self._last = self._names[module], args, output
        self._calls[self._names[module]] += 1

    def update(self, output: Any) -> None:
        """Add an output of the model."""
        name, args, result = self._last
        is_head = result is output and result is not None and len(args) == self._calls[name] == 1
        self._found.add(name if is_head else None)
        if is_head:
            self._inputs.append(args[0].detach().clone())
        self._calls.clear()
        self._last = ("", (), None)

    @property
    def name(self) -> str | None:
        """The name of this layer; None if the model returned anything else, or called the layer twice."""
        return next(iter(self._found)) if len(self._found) == 1 else None

    @property
    def inputs(self) -> Tensor:
        """Its inputs for all samples `(n, D)`."""
        return torch.cat(self._inputs)


def state_without(model: nn.Module, layer: str) -> bytes:
    """Hash all parameters and buffers of a model but those of one layer."""
    digest = hashlib.blake2b()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not name.startswith(f"{layer}."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.digest()
