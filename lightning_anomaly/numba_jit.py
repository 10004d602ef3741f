"""Compile a loop with numba."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numba
from numba.core import event

__all__ = ["compile_loop", "compile_time"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compile_loop(**options: Any) -> Callable[[_Function], _Function]:
    """`numba.njit(**options)` that keeps a function's types, and compiles without a cache where none can be stored."""

    def decorate(function: _Function) -> _Function:
        try:
            compiled: _Function = numba.njit(**options)(function)
        except RuntimeError:  # neither the package's folder nor a home can be written to, as in some containers
            compiled = numba.njit(**options | {"cache": False})(function)
        return compiled

    return decorate


def compile_time(take: Callable[[float], None]) -> AbstractContextManager[None]:
    """Tell `take`, at the end, how long numba compiled loops meanwhile (seconds), if it did."""
    timer: AbstractContextManager[None] = event.install_timer("numba:compile", take)
    return timer
