"""Whose state a callback holds: that of the module of this fit, or of one that was fitted before."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["Subject"]


class Subject:
    """The module that a callback has learnt something about, from one fit to the next and through checkpoints."""

    def __init__(self) -> None:
        self._module: weakref.ref[Any] | None = None
        self._last: weakref.ref[Any] | None = None  # of the last fit, validation or test
        self._loaded = False
        self._keeps = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a callback, in another process for example, meets a copy of the module, if any.
        return {"_module": None, "_last": None, "_loaded": self._loaded, "_keeps": False}

    def begin(self, pl_module: Any, stage: str) -> bool:
        """Says what a Trainer does with a module. What a fit found of it stays when it is validated or tested.

        Returns:
            Whether another module is validated or tested than that of the last fit, validation or test.
        """
        known = self._module is not None and self._module() is pl_module
        again = self._last is not None and self._last() is pl_module
        self._keeps, self._last = stage != "fit" and known, weakref.ref(pl_module)
        return stage != "fit" and not known and not again

    def load(self) -> bool:
        """Whether to take what a checkpoint brings; if so, it is about the next module."""
        self._loaded = not self._keeps
        return self._loaded

    def meet(self, pl_module: Any) -> None:
        """Finds out whom a checkpoint was loaded for."""
        self._keeps = False
        if self._loaded:
            self._module, self._loaded = weakref.ref(pl_module), False

    def changes_to(self, pl_module: Any) -> bool:
        """Whether what is known is about another module; from now on it is about this one."""
        self.meet(pl_module)
        before = None if self._module is None else self._module()
        self._module = weakref.ref(pl_module)
        return before is not pl_module
