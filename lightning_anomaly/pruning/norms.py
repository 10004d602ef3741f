"""Which normalisation layer takes which convolution's output, found by watching a forward pass."""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_anomaly.capture.hooks import compiled_models_eager, evaluating
from lightning_anomaly.capture.layers import modules_by_name

# Layers that turn a channel of zeros into a channel of zeros and leave the channels where they are: a normalisation
# layer behind one of them still sees the convolution's filters. Matched by exact type: a subclass may do anything.
_CARRIERS: frozenset[type[nn.Module]] = frozenset(
    {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh}
    | {nn.Hardswish, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.LocalResponseNorm}
    | {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d}
    | {nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}
    | {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
)


@dataclass(frozen=True)
class NormFlow:
    """What an observed forward pass showed; may also be written by hand.

    Attributes:
        norms: `{convolution: [normalisation layer, ...]}`. One that was called and feeds none has `[]`.
        shared: Normalisation layers that took something else as well: another convolution's output, or what is none.
    """

    norms: Mapping[str, Sequence[str]]
    shared: Collection[str] = frozenset()


class FlowObserver:
    """Watches any forward pass of a model and notes which normalisation layer takes which convolution's output.

    What counts is the tensor itself, not the order of definition: the layer's input *is* the convolution's output, a
    view of it with the channels in their place, or what an activation, dropout or pooling module made of it. A tensor
    written to in between (`x += shortcut`) is no longer the convolution's output. Functions such as
    `torch.nn.functional.relu` cannot be seen, so what is behind them is not found; in inference mode neither can views
    and writes.

    Use it as a context manager, or `attach` and `remove` it from two places; what several passes showed adds up.
    The model is only hooked in between, and only tensors that the pass itself keeps alive are looked at.

    Args:
        model: The model whose forward pass will be observed; nothing is attached to it yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._sources: dict[str, set[str | None]] = {}  # normalisation layer -> the convolutions it was fed by
        self._called: dict[str, list[str]] = {}
        # Weak references by id: a dead one leaves at once, so a reused id is never taken for the tensor it once was.
        self._alive: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}

    @property
    def flow(self) -> NormFlow:
        """What the passes observed so far have shown."""
        shared = frozenset(norm for norm, sources in self._sources.items() if len(sources) > 1)
        return NormFlow(norms={conv: list(norms) for conv, norms in self._called.items()}, shared=shared)

    def attach(self) -> None:
        """Registers the hooks. `remove` must follow, also after an exception."""
        self.remove()
        with ExitStack() as hooks:
            hooks.enter_context(compiled_models_eager())
            for name, module in modules_by_name(self._model).items():
                self._watch(hooks, name, module)
            self._hooks = hooks.pop_all()

    def remove(self) -> None:
        """Takes every hook off the model; a second call does nothing."""
        self._hooks.close()
        self._alive.clear()

    def __enter__(self) -> FlowObserver:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _watch(self, hooks: ExitStack, name: str, module: nn.Module) -> None:
        # The hooks are plain functions: a model that is deep-copied meanwhile does not copy this observer.
        if isinstance(module, _ConvNd):

            def conv_called(module: nn.Module, args: Any, output: Any) -> None:
                self._called.setdefault(name, [])
                self._follow(output, name)

            hooks.callback(module.register_forward_hook(conv_called).remove)
        elif is_norm(module):

            def norm_called(module: nn.Module, args: Any, kwargs: Any) -> None:
                conv = self._source(args, kwargs, any_view=not isinstance(module, _NormBase))
                self._sources.setdefault(name, set()).add(conv)
                if conv is not None and name not in self._called[conv]:
                    self._called[conv].append(name)

            hooks.callback(module.register_forward_pre_hook(norm_called, with_kwargs=True).remove)
        elif type(module) in _CARRIERS:
            source: str | None = None

            def carrier_called(module: nn.Module, args: Any, kwargs: Any) -> None:
                nonlocal source  # looked up before the call, which may write to its input in place
                source = self._source(args, kwargs)

            def carrier_returned(module: nn.Module, args: Any, output: Any) -> None:
                if source is not None:
                    self._follow(output, source)

            hooks.callback(module.register_forward_pre_hook(carrier_called, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(carrier_returned).remove)

    def _follow(self, tensor: Any, conv: str) -> None:
        if isinstance(tensor, Tensor):
            key = id(tensor)
            reference = weakref.ref(tensor, lambda _: self._alive.pop(key, None))
            self._alive[key] = (reference, _writes(tensor), conv)

    def _source(self, args: tuple[Any, ...], kwargs: dict[str, Any], any_view: bool = False) -> str | None:
        tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if tensor is None:
            return None
        base = tensor._base
        # Same sizes and steps of the first two axes, samples and channels: still one row per filter (`flatten(2)`).
        if base is not None and not any_view and _channels(base) != _channels(tensor):
            base = None
        for candidate in (tensor, base):
            reference, writes, conv = self._alive.get(id(candidate), (None, 0, ""))
            if reference is not None and reference() is candidate and writes == _writes(tensor):
                return conv
        return None


def observe_flow(model: nn.Module, example_input: Any) -> NormFlow:
    """Runs one forward pass and returns which normalisation layer takes which convolution's output.

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
    args = example_input if isinstance(example_input, tuple) else (example_input,)
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
    return named and type(module) not in _CARRIERS and next(module.children(), None) is None


def _channels(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.shape[:2], tensor.stride()[:2], tensor.storage_offset())


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to in place, which tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
