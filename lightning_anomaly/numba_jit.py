"""Compile a loop with numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

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
