"""Compile a loop with numba."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numba
from numba.core import event

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compile_loop(**options: Any) -> Callable[[_Function], _Function]:
    """Apply `numba.njit(**options)`, without a cache if none can be stored, and keep the function's types."""

    def decorate(function: _Function) -> _Function:
        try:
            compiled: _Function = numba.njit(**options)(function)
        except RuntimeError:  # neither the package nor the home folder is writable, as in some containers
            compiled = numba.njit(**options | {"cache": False})(function)
        return compiled

    return decorate


def compile_time(take: Callable[[float], None]) -> AbstractContextManager[None]:
    """Call `take` at the end with the time that numba spent compiling loops inside (seconds), if it did."""
    timer: AbstractContextManager[None] = event.install_timer("numba:compile", take)
    return timer
