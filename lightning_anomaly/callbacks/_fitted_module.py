"""Know whether a Trainer fits, and what."""

from __future__ import annotations

import weakref
from typing import Any


class FittedModule:
    """The module that a Trainer works on, by a weak reference: a callback drops its state when a fit begins anew."""

    def __init__(self) -> None:
        self.fitting: bool | None = None  # None before `setup`
        self._module: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"fitting": self.fitting, "_module": None}  # a weak reference cannot be copied

    def enter_module(self, callback: Any, trainer: Any, pl_module: Any, stage: str) -> None:
        """Reset a callback if a fit begins at step 0; a checkpoint, which is loaded next, continues another.

        A Trainer that has fitted before goes on from its last step. The callback warns again if a module is validated.
        """
        self.fitting = stage == "fit"
        self._module = weakref.ref(pl_module)
        if not self.fitting:
            callback._guard.forget_warnings()
        elif trainer.global_step == 0:
            callback._reset()

    @property
    def module(self) -> Any:
        """The module, whose state a checkpoint restores; None without one."""
        return None if self._module is None else self._module()
