"""Compile a loop with numba, and say so if it takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
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


_announced: set[str] = set()


def announce_compilation(loop: Any) -> None:
    """Announce on stderr, once per process, that loops like this one will be compiled if it is not cached."""
    folder, name = loop.stats.cache_path, Path(loop.py_func.__code__.co_filename).stem
    if name in _announced:
        return
    _announced.add(name)  # first, as several threads may call
    if folder is None or not any(Path(folder).glob(f"{name}.*.nbi")):
        cached = "Every process will do so" if folder is None else f"They are cached in {folder}"
        print(f"lightning_anomaly compiles its loops for up to half a minute. {cached}.", file=sys.stderr)
