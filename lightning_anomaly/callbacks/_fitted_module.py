"""Know which module is fitted, and which validations of a fit are analyzed."""

from __future__ import annotations

import math
import weakref
from time import perf_counter
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly.callbacks._guard import Guard

_SHARE, _SECONDS = 0.1, 1.0  # of the time since the last analysis, and at least: less is not worth a line


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

    def state_key(self, callback: Any) -> str:
        """Return the key of a callback's state in a checkpoint."""
        key = f"{type(callback).__name__}[{callback.log_key_prefix}]"
        # Contains an identity until `setup`, whose error for two equal prefixes is clearer than the Trainer's.
        return f"{key} {id(callback)}" if self.fitting is None else key


class Schedule:
    """Analyze at every n-th validation of a fit, and say once if that takes much of the run's time."""

    def __init__(self, every_n_validations: int) -> None:
        self._every_n = every_n_validations
        self.due = False  # whether the current validation is analyzed
        self._began: list[float] = []  # when each analysis of this fit began (seconds)

    def begin_fit(self) -> None:
        """Forget when earlier analyses began."""
        self._began = []

    def begin_validation(self, validations: int) -> None:
        """Decide whether to analyze, after so many validations."""
        self.due = validations % self._every_n == 0

    def say_cost(self, guard: Guard, seconds: float) -> None:
        """Begin an analysis, and say once if the last one took `seconds`, more than a tenth of the time since it began.

        The first does not count, as it compiles loops and reads images.
        """
        now = perf_counter()
        period = now - self._began[-1] if len(self._began) > 1 else math.inf
        if seconds > max(_SECONDS, _SHARE * period) and guard.is_first_time("cost"):
            share = f"{seconds:.0f} of the {period:.0f} seconds since its last analysis ({100 * seconds / period:.0f}%)"
            rank_zero_info(f"{guard.name} took {share}: see docs/speed.md.")
        self._began.append(now)
