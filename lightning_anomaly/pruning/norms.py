"""Find, by an experiment, the channels of normalization layers that depend on masked filters only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_anomaly.network.forward import evaluating, isolated_calls
from lightning_anomaly.network.layers import CONVOLUTIONS, modules_by_name
from lightning_anomaly.network.module_calls import seen_calls

# Norms that do not mix channels.
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_NORMS = (*CHANNEL_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_REPLACED = (*CONVOLUTIONS, nn.Linear, *_NORMS)  # whose output becomes noise


@dataclass(frozen=True)
class FoundNorms:
    """The results of the experiment."""

    channels: dict[str, list[int]]  # by norm, the channels that depend on masked filters only
    mixing: list[str]  # norms that mix the zeros of masked filters with other channels
    called: set[str]  # convolutions that were called


def find_norms(model: nn.Module, filters: Mapping[str, Iterable[int]], run: Callable[[], object]) -> FoundNorms:
    """Find the norm channels whose input is 0 because of masked filters, which are all of the model's.

    Outputs of convolutions, linear layers and norms become noise, those of masked filters 0, and so do those of norm
    channels whose whole input is 0. Rectifiers make zeros, too: only zeros under positive and under negative noise
    count. Flags are restored. Without masked filters or norms nothing runs, and the convolutions count as called.
    """
    if not filters or not any(isinstance(module, _NORMS) for module in modules_by_name(model).values()):
        return FoundNorms({}, [], {*filters})
    named = {module: name for name, module in modules_by_name(model).items()}
    first = _NormsPass(named, filters, 1.0, {})
    second = _NormsPass(named, filters, -1.0, first.zeros)
    for noisy in (first, second):
        with torch.no_grad(), evaluating(model), seen_calls(noisy.replace):
            run()
    channels = {name: zero.nonzero()[:, 0].tolist() for name, zero in second.zeros.items() if zero.any()}
    return FoundNorms(channels, sorted(first.mixing & second.mixing), second.called)


def call_model(model: nn.Module, example_input: Any) -> Any:
    """Call a model on copies of its buffers and of its input, or a tuple of inputs, and restore the random state."""
    if example_input is None:
        raise ValueError("Parameter `example_input` should be given for a model with norm layers. Found None.")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with isolated_calls(model) as call:
        return call(*apply_to_collection(arguments, Tensor, lambda tensor: tensor.detach().clone(), allow_frozen=True))


class _NormsPass:
    """A pass with noise of one sign."""

    def __init__(
        self,
        named: Mapping[nn.Module, str],
        filters: Mapping[str, Iterable[int]],
        sign: float,
        before: Mapping[str, Tensor],
    ) -> None:
        self.zeros: dict[str, Tensor] = {}  # by norm, the channels that are 0 in all calls and in `before` `(C,)`
        self.mixing: set[str] = set()
        self.called: set[str] = set()
        self._named, self._filters, self._sign, self._before = named, filters, sign, before
        self._generator = torch.Generator("cpu").manual_seed(0)

    def replace(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Replace the output of a layer of the model, see `seen_calls`."""
        name = self._named.get(module)
        if name is None or not isinstance(module, _REPLACED):
            return output
        inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if inputs is None or not isinstance(output, Tensor):
            return output
        # Never 0, not saturating activations, and different for each sample and pixel.
        noise = (1 + torch.rand(output.shape, generator=self._generator, device="cpu")).mul(self._sign).to(output)
        if isinstance(module, CONVOLUTIONS):
            self.called.add(name)
            zero = torch.zeros(module.out_channels, dtype=torch.bool, device=output.device)
            zero[[*self._filters.get(name, ())]] = True
            if module.bias is None:
                group = zero_norm_channels(inputs).view(module.groups, -1).all(1)
                zero |= group.repeat_interleave(module.out_channels // module.groups)
        elif isinstance(module, CHANNEL_NORMS):
            zero = zero_norm_channels(inputs)
            zero &= self._before.get(name, zero)
            self.zeros[name] = zero & self.zeros.get(name, zero)
        else:
            if isinstance(module, _NORMS) and any(zero_norm_channels(inputs, axis).any() for axis in (1, -1)):
                self.mixing.add(name)
            return noise
        return noise.masked_fill(zero.view(-1, *[1] * (output.dim() - 2)), 0.0)


def zero_norm_channels(tensor: Tensor, axis: int = 1) -> Tensor:
    """Find the channels that are 0 for all samples and positions, bool `(C,)`."""
    return (tensor == 0).movedim(axis, 0).flatten(1).all(1)
