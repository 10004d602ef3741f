"""Know which module is fitted."""

from __future__ import annotations

import weakref
from typing import Any


class FittedModule:
    """The module that a Trainer works on, by weak references: a callback drops its state when another one is fitted."""

    def __init__(self) -> None:
        self.fitting: bool | None = None  # None before `setup`
        self._fitted: weakref.ref[Any] | None = None  # of the last fit
        self._current: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"fitting": self.fitting, "_fitted": None, "_current": None}  # a weak reference cannot be copied

    def enter_module(self, callback: Any, pl_module: Any, stage: str) -> None:
        """Reset a callback if another module is fitted than before; it warns again if some module is validated."""
        self.fitting = stage == "fit"
        self._current = weakref.ref(pl_module)
        if not self.fitting:
            callback._guard.forget_warnings()
            return
        if self._fitted is None or self._fitted() is not pl_module:
            callback._reset()
        self._fitted = self._current

    def resume_module(self) -> Any:
        """Return the current module, whose state a checkpoint restores; None without one."""
        self._fitted = self._current
        return None if self._current is None else self._current()
