"""Which normalisation layers are behind which convolutions, found by watching a forward pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_anomaly.capture.hooks import Hook, compiled_models_eager, evaluating, is_exclusive
from lightning_anomaly.capture.layers import modules_by_name
from lightning_anomaly.capture.probe import clone_inputs
from lightning_anomaly.pruning.operations import is_recorded, watching_operations
from lightning_anomaly.pruning.origins import Origin, OriginTracker, all_of, is_followed

Fed = str | Sequence[Any]  # see `NormFlow.norms`


@dataclass(frozen=True)
class NormFlow:
    """What an observed forward pass showed; may also be written by hand.

    Attributes:
        norms: `{layer: [fed, ...]}`, of every convolution that was called and of whatever else passes zeros on: the
            layers that its output reaches as zeros where it is 0. `fed` is a name if channel `i` is channel `i` there,
            and else `[name, channels, channels there]`. These are normalisation layers, which are themselves such a
            layer once they are masked, and convolutions in groups without bias, whose channels are then groups. What
            several layers feed is 0 if all of them are.
        shared: Layers that took something else in another call.
        lost: `{layer: [norm, ...]}`: the normalisation layers behind operations that could not be followed.
    """

    norms: Mapping[str, Sequence[Fed]]
    shared: Collection[str] = frozenset()
    lost: Mapping[str, Sequence[str]] = field(default_factory=dict)


class FlowObserver:
    """Watches any forward pass of a model and notes which normalisation layers are behind which convolutions.

    What counts are the tensors themselves, not the order of definition. A filter is followed through modules, functions
    and methods as long as its zeros stay zeros (activations, dropout, pooling, gates, convolutions of single channels),
    wherever its channel goes (concatenation, slices, shuffles). In a sum, as behind a shortcut, a channel is 0 only
    where all filters in it are, and never if something else is in it.

    Use it as a context manager, or `attach` and `remove` it from two places; what several passes showed adds up.
    The model is only watched in between, and only tensors that the pass itself keeps alive are looked at.

    Args:
        model: The model whose forward pass will be observed; nothing is attached to it yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._tracker = OriginTracker()
        self._convolutions: dict[str, None] = {}  # those that were called, in order
        self._sizes: dict[str, int] = {}  # the layers from which filters are followed, with their numbers of channels
        # What other layers were called with, each different input once: see `_origins`.
        self._inputs: dict[str, dict[tuple[Origin, ...], None]] = {}

    @property
    def flow(self) -> NormFlow:
        """What the passes observed so far have shown."""
        norms: dict[str, list[Fed]] = {conv: [] for conv in self._convolutions}
        lost: dict[str, list[str]] = {}
        for name, inputs in self._inputs.items():
            feeding: dict[str, dict[tuple[int, int], None]] = {}
            losing: dict[str, None] = {}
            for index, origin in ((index, origin) for origins in inputs for index, origin in enumerate(origins)):
                if is_followed(origin) and not self._has_whole_layer(origin):
                    for layer, channel in sorted(origin):
                        feeding.setdefault(layer, {})[channel, index] = None
                elif origin and all(channel is None for _, channel in origin):  # otherwise a sum with what is followed
                    losing |= dict.fromkeys(sorted(layer for layer, _ in origin))
            for layer, pairs in feeding.items():
                channels, there = (list(part) for part in zip(*pairs, strict=True))
                same = channels == there == list(range(max(self._sizes[layer], *map(len, inputs))))
                norms.setdefault(layer, []).append(name if same else [name, channels, there])
            for layer in losing:
                lost.setdefault(layer, []).append(name)
        shared = frozenset(name for name, inputs in self._inputs.items() if len(inputs) > 1)
        return NormFlow(norms=norms, shared=shared, lost=lost)

    def attach(self) -> None:
        """Starts to watch. `remove` must follow, also after an exception."""
        self.remove()
        with ExitStack() as hooks:
            hooks.enter_context(compiled_models_eager())
            for name, module in modules_by_name(self._model).items():
                self._watch(hooks, name, module)
            hooks.enter_context(watching_operations(self._tracker))
            self._hooks = hooks.pop_all()

    def remove(self) -> None:
        """Stops and takes every hook off the model; a second call does nothing."""
        self._hooks.close()
        self._tracker = OriginTracker()

    def __enter__(self) -> FlowObserver:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _watch(self, hooks: ExitStack, name: str, module: nn.Module) -> None:
        def called(module: nn.Module, args: Any, kwargs: Any) -> None:
            if is_exclusive() or is_recorded():
                return
            tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            origins = () if tensor is None else self._origins(module, tensor)
            self._inputs.setdefault(name, {})[origins] = None

        def returned(module: nn.Module, args: Any, output: Any) -> None:
            if is_exclusive() or is_recorded():
                return
            if isinstance(module, _ConvNd):
                self._convolutions[name] = None
            if isinstance(module, _ConvNd) or (isinstance(module, _NormBase) and any(self._inputs.get(name, ()))):
                self._sizes[name] = channel_count(module) or 0
            if isinstance(output, Tensor):
                self._start(module, name, output)

        if is_norm(module) or passes_zeros(module):
            hooks.callback(module.register_forward_pre_hook(Hook(called), with_kwargs=True).remove)
        if is_norm(module) or isinstance(module, _ConvNd):
            hooks.callback(module.register_forward_hook(Hook(returned)).remove)

    def _origins(self, module: nn.Module, tensor: Tensor) -> tuple[Origin, ...]:
        """What each channel of a layer's input is made of, or group of channels; `()` if of nothing that is followed.

        Of a layer that mixes channels, in whatever place they are: what there is in its input.
        """
        if tensor.is_nested:  # it has no shape
            return ()
        axis = _channel_axis(module, tensor)
        if not 0 <= axis < tensor.dim():  # the layer itself will have something to say about it
            return ()
        origins: list[Origin]
        if isinstance(module, _ConvNd):
            channels = self._tracker.channels(tensor, axis)
            groups = zip(*[iter(channels)] * (module.in_channels // module.groups), strict=False)
            origins = [origin if is_followed(origin := all_of(*group)) else None for group in groups]
        elif isinstance(module, _NormBase):
            origins = self._tracker.channels(tensor, axis)
        else:
            origins = self._tracker.distinct(tensor)
        return tuple(origins) if any(origins) else ()

    def _has_whole_layer(self, origin: Iterable[tuple[str, int]]) -> bool:
        """Whether a sum is never 0, as a layer is never masked as a whole."""
        counts = Counter(layer for layer, _ in origin)
        return any(count == self._sizes[layer] > 1 for layer, count in counts.items())

    def _start(self, module: nn.Module, name: str, output: Tensor) -> None:
        axis = 0 if output.is_nested else _channel_axis(module, output)
        if not output.is_nested and name in self._sizes and output.shape[axis : axis + 1] == (self._sizes[name],):
            self._tracker.start(output, name, axis)
        else:
            self._tracker.forget(output)


def observe_flow(model: nn.Module, example_input: Any) -> NormFlow:
    """Runs one forward pass and returns which normalisation layers are behind which convolutions.

    The pass runs in evaluation mode, without gradients and on copies of the buffers; train/eval flags, buffers,
    gradients, hooks and torch's random state are as before, also after an exception.

    Args:
        model: The model to run.
        example_input: What `model` is called with, on its device; a tuple is unpacked into several arguments.

    Returns:
        The flow between convolutions and normalisation layers.

    Raises:
        ValueError: The model has a lazy layer that was never run, which the pass would initialise.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ValueError(f"Parameter `model` should be initialised: run it once before. Found lazy {lazy}.")
    args = clone_inputs(example_input if isinstance(example_input, tuple) else (example_input,))
    observer = FlowObserver(model)
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), observer:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.func.functional_call(model, buffers, args)
    return observer.flow


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own layers, and by its name any other without children (`RMSNorm`)."""
    if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        return True
    named = re.search(r"Norm(\dd)?$", type(module).__name__) is not None
    return named and type(module) is not nn.LocalResponseNorm and next(module.children(), None) is None


def fed_name(fed: Fed) -> str:
    """The name of a layer that is fed by another one."""
    return fed if isinstance(fed, str) else str(fed[0])


def plain_norms(norms: Mapping[str, Sequence[Fed]]) -> dict[str, list[Any]]:
    """The `norms` of a `NormFlow` in strings and lists."""
    return {layer: [fed if isinstance(fed, str) else list(fed) for fed in feds] for layer, feds in norms.items()}


def passes_zeros(module: nn.Module) -> bool:
    """Whether a layer makes zeros of zeros, channel by channel or group by group: a norm does once it is masked."""
    return isinstance(module, _NormBase) or (isinstance(module, _ConvNd) and module.groups > 1 and module.bias is None)


def channel_count(module: Any) -> int | None:
    """How many channels a layer gives; None if that is not known of a norm."""
    count: int | None = module.out_channels if isinstance(module, _ConvNd) else getattr(module, "num_features", None)
    return count


def _channel_axis(module: nn.Module, tensor: Tensor) -> int:
    """Where the channels are, also without an axis of samples, which convolutions and InstanceNorm can do without."""
    if isinstance(module, _ConvNd):
        return tensor.dim() - len(module.kernel_size) - 1
    return 1 if tensor.shape[1:2] == (getattr(module, "num_features", None),) else 0
