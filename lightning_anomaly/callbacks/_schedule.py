"""Know which validations of a fit are analyzed, and say if that takes long."""

from __future__ import annotations

import math
from time import perf_counter

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly.callbacks._guard import Guard

_SHARE, _SECONDS = 0.1, 1.0  # of the time since the last analysis, and at least: less is not worth a line


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
            rank_zero_info(f"{guard.name} took {share}: raise `every_n_validations` to cut it.")
        self._began.append(now)
