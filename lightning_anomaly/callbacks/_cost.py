"""Say if a callback's analyses take long."""

from __future__ import annotations

import math
from time import perf_counter

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly.callbacks._guard import Guard

_SHARE, _SECONDS = 0.1, 1.0  # of the time since the last analysis, and at least: less is not worth a line


class Cost:
    """Says once if analyses take much of a run's time."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.begin_fit()

    def begin_fit(self) -> None:
        self._began: list[float] = []  # when each analysis of this fit began (seconds)

    def begin_analysis(self, seconds: float) -> None:
        """Say once if the last analysis took `seconds`, more than a tenth of the time since it began.

        The first does not count, as it compiles loops and reads images.
        """
        now = perf_counter()
        period = now - self._began[-1] if len(self._began) > 1 else math.inf
        if seconds > max(_SECONDS, _SHARE * period) and self._guard.is_first_time("cost"):
            share = f"{seconds:.0f} of the {period:.0f} seconds since its last analysis ({100 * seconds / period:.0f}%)"
            rank_zero_info(f"{self._guard.name} took {share}: raise `every_n_validations` to cut it.")
        self._began.append(now)
