"""See the calls of modules while a model runs, with nothing attached to any module."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_ABOUT_HOOKS = ("ignore", re.compile("Using `torch.compile.module.` when there are global hooks"), UserWarning, None, 0)
_eager_users = 0  # counted, as nested stances that exit out of order would restore the wrong one
_eager_stance = ExitStack()
_hooks_running = 0


@contextmanager
def compiled_models_eager() -> Iterator[None]:
    """Run compiled models eagerly inside, as they ignore hooks that were added after their compilation."""
    global _eager_users
    if "torch._dynamo" not in sys.modules:  # no model is compiled
        yield
        return
    if _eager_users == 0:
        _eager_stance.enter_context(torch.compiler.set_stance("force_eager"))
    _eager_users += 1
    try:
        yield
    finally:
        _eager_users -= 1
        if _eager_users == 0:
            _eager_stance.close()


@contextmanager
def seen_calls(after: Callable[..., Any], before: Callable[..., None] | None = None) -> Iterator[None]:
    """Call `after(module, args, kwargs, output)` for every call of a module inside, which may replace the output.

    `before(module, args)` comes before it. The hooks are torch's global ones, as what hangs on a module is copied,
    pickled and scripted with it. What is traced or exported is not seen.
    """

    def run_after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return None if is_traced() else _run(after, module, args, kwargs, output)

    def run_before(module: nn.Module, args: Any) -> None:
        if before is not None and not is_traced():
            _run(before, module, args)

    with compiled_models_eager(), _quiet_about_compiled_models(), ExitStack() as stack:
        hook = register_module_forward_hook(run_after, with_kwargs=True)
        stack.callback(hook.remove)
        # torch 2.13 forgets the hook, and not that it takes keyword arguments.
        stack.callback(vars(torch.nn.modules.module)["_global_forward_hooks_with_kwargs"].pop, hook.id, None)
        if before is not None:
            stack.callback(register_module_forward_pre_hook(run_before).remove)
        yield


def hooks_running() -> bool:
    """Whether a hook of `seen_calls` runs, whose calls of functions are not the model's."""
    return _hooks_running > 0


def is_traced() -> bool:
    """Whether a model is being traced, scripted or exported, so that what a hook computes would become a part of it."""
    jit: Any = torch.jit
    return jit.is_tracing() or torch.compiler.is_compiling()


def _run(hook: Callable[..., Any], *args: Any) -> Any:
    global _hooks_running
    _hooks_running += 1
    try:
        return hook(*args)
    finally:
        _hooks_running -= 1


@contextmanager
def _quiet_about_compiled_models() -> Iterator[None]:
    """Ignore torch's advice on global hooks for compiled models, as these are not the user's."""
    filters: Any = warnings.filters  # `filterwarnings` would show other warnings again that were shown once
    filters.insert(0, _ABOUT_HOOKS)
    try:
        yield
    finally:
        if _ABOUT_HOOKS in warnings.filters:  # a step may have reset them
            filters.remove(_ABOUT_HOOKS)
