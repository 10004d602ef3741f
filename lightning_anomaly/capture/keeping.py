"""What a model keeps while it is run on a probe: its buffers, metrics and plain attributes are given back."""

from __future__ import annotations

import copy
import operator
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

__all__ = ["copied", "keeping_metrics", "keeping_state"]


@contextmanager
def keeping_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives buffers and plain attributes back as they were: averages, counters, the state of a recurrent layer.

    What is yielded does so too, for between two forward passes: a state has as many samples as its batch. Of the
    attributes, tensors get their values back, and lists, deques, dicts and sets their entries; what else is changed in
    place stays changed. Modules that have got parameters, submodules or hooks meanwhile, or whose submodules have, keep
    what they have: they were built.
    """
    kept = [_Kept(module) for module in model.modules()]

    def give_back(thoroughly: bool = False) -> None:
        built = {own.module for own in kept if _made_of(own.module) != own.made_of}
        for place, own in enumerate(kept):
            if built and not built.isdisjoint(own.module.modules()):
                kept[place] = _Kept(own.module)
            else:
                own.give_back(thoroughly)

    try:
        yield give_back
    finally:
        give_back(thoroughly=True)


_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set)
_OWN = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}  # parameters, modules, hooks


class _Kept:
    """What one module had."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.made_of = module, _made_of(module)
        self._buffers = dict(module._buffers)
        # Metrics are given other states meanwhile; what is scripted has its attributes elsewhere.
        plain = not isinstance(module, (Metric, torch.jit.ScriptModule))
        self._values = dict(vars(module)) if plain else None
        self._entries = [
            (value, copy.copy(value))
            for name, value in (self._values or {}).items()
            if type(value) in _CONTAINERS and name not in _OWN
        ]
        tensors = [*self._buffers.values(), *(self._values or {}).values()]
        changeable = [tensor for tensor in tensors if isinstance(tensor, Tensor) and _changeable(tensor)]
        self._contents = [(tensor, tensor.detach().clone(), tensor._version) for tensor in changeable]

    def give_back(self, thoroughly: bool) -> None:
        """Gives all of it back; tensors that torch does not know to be written to only if this is to be thorough."""
        if self._values is not None:
            own = vars(self.module)
            for name in [name for name in own if name not in self._values]:
                del own[name]
            own.update(self._values)
            self.module._buffers.clear()
            self.module._buffers.update(self._buffers)
        else:
            for name, kept in self._buffers.items():
                if kept is not None and getattr(self.module, name, None) is not kept:
                    setattr(self.module, name, kept)
        for value, entries in self._entries:
            if not _same_entries(value, entries):
                value.clear()
                (value.extend if isinstance(value, (list, deque)) else value.update)(entries)
        for place, (tensor, values, version) in enumerate(self._contents):
            if thoroughly or tensor._version != version or tensor.shape != values.shape:
                if not torch.equal(tensor, values):
                    with torch.no_grad():
                        tensor.resize_(values.shape).copy_(values)
                self._contents[place] = tensor, values, tensor._version


def _changeable(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_inference())


def _same_entries(value: Any, entries: Any) -> bool:
    if len(value) != len(entries):
        return False
    if isinstance(value, dict):
        return all(map(operator.is_, value, entries)) and all(map(operator.is_, value.values(), entries.values()))
    return value == entries if isinstance(value, set) else all(map(operator.is_, value, entries))


def _made_of(module: nn.Module) -> list[Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return []  # it cannot be built meanwhile
    parameters = [(name, parameter is None) for name, parameter in module._parameters.items()]
    hooks = [tuple(own) for name, own in vars(module).items() if name.endswith("_hooks") and type(own) is OrderedDict]
    return [type(module), parameters, [*module._modules], hooks]


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


def copied(inputs: Any) -> Any:
    """A copy of all tensors in something: a model may change its inputs in place, and these are somebody's own."""
    return apply_to_collection(inputs, Tensor, _copy, allow_frozen=True)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
