"""Every operation of a forward pass, of modules, functions and methods alike, shown to whoever watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from lightning_anomaly.capture.hooks import is_tracing

__all__ = ["OperationWatcher", "is_recorded", "watching_operations"]


class OperationWatcher(Protocol):
    """Who is shown operations."""

    def before(self, tensors: list[Tensor]) -> Any:
        """Called with all tensors among the arguments of an operation; what it returns is given to `after`."""

    def after(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], before: Any, result: Any) -> None:
        """Called with the operation, its arguments and what it returned."""


@contextmanager
def watching_operations(watcher: OperationWatcher) -> Iterator[None]:
    """Shows a watcher the operations of this thread inside, in training, without gradients and in inference mode.

    Nothing that is computed changes. Several uses may overlap and end in any order.
    """
    if not _this_thread.watchers:
        _this_thread.stack.enter_context(_this_thread.mode)
    _this_thread.watchers.append(watcher)
    try:
        yield
    finally:
        _this_thread.watchers.remove(watcher)
        if not _this_thread.watchers:
            _this_thread.stack.close()


def is_recorded() -> bool:
    """Whether what runs is traced, exported or transformed, or runs on tensors without values."""
    kinds = torch._C._TorchDispatchModeKey
    return (
        is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY))
    )


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self, watchers: list[OperationWatcher]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watchers = watchers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._get_tracing_state() is not None:  # `torch.jit.trace` records what an operation is made of
            with _past_the_modes():
                return func(*args, **kwargs)
        if is_recorded():  # by others, who are to see the operation itself
            return func(*args, **kwargs)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        before = [(watcher, watcher.before(tensors)) for watcher in self._watchers]
        with _as_without_a_mode(func, types):
            result = func(*args, **kwargs)
        for watcher, known in before:
            watcher.after(func, args, kwargs, tensors, known, result)
        return result


class _Thread(threading.local):
    """One mode for all watchers: modes of their own could only be left in the order opposite to that of entering."""

    def __init__(self) -> None:
        self.watchers: list[OperationWatcher] = []
        self.mode = _Mode(self.watchers)
        self.stack = ExitStack()


_this_thread = _Thread()


@contextmanager
def _as_without_a_mode(func: Any, types: Any) -> Iterator[None]:
    """Lets an operation take the way that it takes without a mode, to the last bit.

    Within a mode autocast is off for the parts of an operation, and in inference mode, where whole compositions such as
    `linear` come to a mode, these choose parts that round otherwise.
    """
    if not _has_own_parts(func) or types or _get_current_dispatch_mode() is not None:  # somebody else is to see them
        yield
        return
    with _past_the_modes():
        yield


@contextmanager
def _past_the_modes() -> Iterator[None]:
    with torch._C._RestorePythonTLSSnapshot(), torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        yield


def _has_own_parts(func: Any) -> bool:
    # Outside of it, with gradients, an operation must not start over, and without them all but these few are parts.
    if not isinstance(func, OpOverload) or func.is_view or func._schema.is_mutable or torch.is_grad_enabled():
        return False
    fast = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
    return torch.is_inference_mode_enabled() or func.namespace != "aten" or func.overloadpacket.__name__ in fast
