"""What a model keeps while it is run on a probe: its buffers, metrics and plain attributes are given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

__all__ = ["copied", "keeping_attributes", "keeping_buffers", "keeping_metrics"]


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Gives buffers back as they were: some change in evaluation too, those of quantization-aware training for one."""
    kept = [
        (module, name, buffer, buffer.clone() if _changeable(buffer) else None)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in kept:
            if getattr(module, name, None) is not buffer:
                setattr(module, name, buffer)
            if values is not None and not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.resize_(values.shape).copy_(values)


def _changeable(buffer: Tensor) -> bool:
    return not is_lazy(buffer) and buffer.layout is torch.strided and not (buffer.is_meta or buffer.is_inference())


@contextmanager
def keeping_metrics(model: nn.Module) -> Iterator[None]:
    """Metrics among the layers measure on copies of their states: what they see in a `forward` is of other samples."""
    kept = [(metric, dict(vars(metric))) for metric in model.modules() if isinstance(metric, Metric)]
    for metric, values in kept:
        for name in metric._defaults:
            setattr(metric, name, copied(values[name]))
    try:
        yield
    finally:
        for metric, values in kept:
            vars(metric).update(values)


@contextmanager
def keeping_attributes(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives plain attributes back, such as the state that a spiking neuron or a recurrent cell is in.

    What is yielded does so too, for between two forward passes: a state has as many samples as its batch. What an
    attribute refers to is not copied, so what is changed in place, as a list that is appended to, stays changed. A
    module that has only now got its parameters or submodules keeps what it has.
    """
    kept = [
        (module, _made_of(module), dict(vars(module)), list(module._buffers))
        for module in model.modules()
        if not isinstance(module, (Metric, torch.jit.ScriptModule))
    ]

    def give_back() -> None:
        for module, made_of, values, buffers in kept:
            if _made_of(module) == made_of:
                own = vars(module)
                for name in [name for name in own if name not in values]:
                    del own[name]
                own.update(values)
                for name in [name for name in module._buffers if name not in buffers]:
                    del module._buffers[name]

    try:
        yield give_back
    finally:
        give_back()


def _made_of(module: nn.Module) -> list[Any]:
    return [type(module), *module._parameters, *module._modules]


def copied(inputs: Any) -> Any:
    """A copy of all tensors in something: a model may change its inputs in place, and these are somebody's own."""
    return apply_to_collection(inputs, Tensor, _copy, allow_frozen=True)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
