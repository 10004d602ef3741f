"""Which channels of normalization layers depend on masked filters alone, found by an experiment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import compiled_models_eager, evaluating
from lightning_anomaly.capture.layers import CONVOLUTIONS, modules_by_name
from lightning_anomaly.capture.probe import clone_inputs, probing
from lightning_anomaly.pruning.filter_rows import CHANNEL_NORMS


@dataclass(frozen=True)
class FoundNorms:
    """What the experiment found."""

    channels: dict[str, list[int]]  # by norm, those that depend on masked filters alone
    mixing: list[str]  # norms that take zeros of masked filters, and mix them with other channels
    called: set[str]  # convolutions


def find_norms(model: nn.Module, filters: Mapping[str, Iterable[int]], run: Callable[[], object]) -> FoundNorms:
    """Find the norm channels that are 0 because of masked filters, once the norms on the way are masked too.

    The model runs in evaluation mode with noise for the output of every convolution, linear layer and norm, and with
    zeros for masked filters. A norm channel whose whole input is 0 depends on masked filters alone; its output becomes
    0 in the same pass, so that what follows is found too. Noise is positive in a first pass and negative in a second
    one, as a rectifier makes zeros too; what is 0 in both counts.

    Of `filters` all that are masked have to be given. The model's flags and the random state are restored; what else
    `run` changes is not.
    """
    first = _Pass(filters, 1.0, {})
    last = _Pass(filters, -1.0, first.zeros)
    for one_pass in (first, last):
        with ExitStack() as hooks, torch.no_grad(), evaluating(model), compiled_models_eager():
            for name, module in modules_by_name(model).items():
                if isinstance(module, (*CONVOLUTIONS, nn.Linear)) or _is_norm(module):
                    hook = partial(one_pass.replace, name)
                    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            run()
    channels = {name: zero.nonzero()[:, 0].tolist() for name, zero in last.zeros.items() if zero.any()}
    return FoundNorms(channels, sorted(first.mixing & last.mixing), last.called)


def call_model(model: nn.Module, example_input: Any) -> Any:
    """Call a model on copies of its buffers and inputs, a tuple of several; the random state is restored afterwards."""
    with probing(model) as call:
        return call(*clone_inputs(example_input if isinstance(example_input, tuple) else (example_input,)))


class _Pass:
    """One pass with noise of one sign."""

    def __init__(self, filters: Mapping[str, Iterable[int]], sign: float, before: Mapping[str, Tensor]) -> None:
        self.zeros: dict[str, Tensor] = {}  # of each norm, the channels `(C,)` that are 0 in every call and in `before`
        self.mixing: set[str] = set()
        self.called: set[str] = set()
        self._filters, self._sign, self._before = filters, sign, before
        self._generator = torch.Generator("cpu").manual_seed(0)

    def replace(self, name: str, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Replace a layer's output."""
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is None or not isinstance(output, Tensor):
            return output
        # Never 0, far from where activations saturate, and another value for each sample and pixel.
        noise = (1 + torch.rand(output.shape, generator=self._generator, device="cpu")).mul(self._sign).to(output)
        if isinstance(module, CONVOLUTIONS):
            self.called.add(name)
            zero = torch.zeros(module.out_channels, dtype=torch.bool, device=output.device)
            zero[[*self._filters.get(name, ())]] = True
            if module.bias is None:
                group = _zero_channels(given).view(module.groups, -1).all(1)
                zero |= group.repeat_interleave(module.out_channels // module.groups)
        elif isinstance(module, CHANNEL_NORMS):
            zero = _zero_channels(given)
            zero &= self._before.get(name, zero)
            self.zeros[name] = zero & self.zeros.get(name, zero)
        else:
            if _is_norm(module) and any(_zero_channels(given, axis).any() for axis in (1, -1)):
                self.mixing.add(name)
            return noise
        return noise.masked_fill(zero.view(-1, *[1] * (output.dim() - 2)), 0.0)


def has_norms(model: nn.Module) -> bool:
    """Whether a model has a normalization layer."""
    return any(map(_is_norm, modules_by_name(model).values()))


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: torch's own layers, and by its name any other without children (`RMSNorm`)."""
    if isinstance(module, (*CHANNEL_NORMS, nn.GroupNorm, nn.LayerNorm)):
        return True
    named = re.search(r"Norm(\dd)?$", type(module).__name__) is not None
    return named and type(module) is not nn.LocalResponseNorm and next(module.children(), None) is None


def _zero_channels(tensor: Tensor, axis: int = 1) -> Tensor:
    return (tensor == 0).movedim(axis, 0).flatten(1).all(1)
