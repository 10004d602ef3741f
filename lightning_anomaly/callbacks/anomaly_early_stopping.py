"""Early stopping by the rise of the anomaly fraction."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from lightning_anomaly._internal.checks import check_integer
from lightning_anomaly.callbacks._guard import OnError
from lightning_anomaly.callbacks._stopping_callback import StoppingCallback, patience_in_words
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.filters.fraction_rise import HOLD, RISE, RISE_PATIENCE


class AnomalyEarlyStopping(StoppingCallback):
    """Stop a run when the fraction of anomaly filters has risen and stays up.

    It watches `anomaly_filters/rise` of the Trainer's first `AnomalyFilterCallback`. While the fraction is flat or
    falls, `rise` is 0 and it never stops the run. The source paper expects a rise to mean overfitting; in our
    experiments it did not, see `docs/results/stopping.md`. `MemorizationEarlyStopping` works better. With few filters
    the fraction fluctuates: raise `threshold`.

    Args:
        threshold: The rise to exceed, as a fraction of the filters.
        patience: How many validations the rise must last. Validations that find nothing do not count. At least 5.
        verbose: Whether it logs its rule and its reason; `stopping_reason_message` has the reason in any case.
        on_error: What to do when one of its hooks fails: "warn" once and go on, or "raise" the error.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is not allowed, or the Trainer has no such `AnomalyFilterCallback`.
    """

    _watched_type = AnomalyFilterCallback
    _measured_key = "clustered"

    def __init__(
        self, threshold: float = RISE, patience: int = RISE_PATIENCE, verbose: bool = True, on_error: OnError = "warn"
    ) -> None:
        super().__init__(threshold, check_integer("patience", patience, HOLD), verbose, on_error)

    def _stopping_rule(self) -> str:
        return (
            f"watches '{self.monitor}' and stops the run when it has been above {self.threshold:g} for "
            f"{patience_in_words(self.patience)}, after {self.patience + HOLD} validations at the earliest"
        )

    def _reason_to_stop(self, metrics: Mapping[str, Any], measured: bool) -> str | None:
        above = takewhile(lambda value: value > self.threshold, reversed(self._rises))
        self.wait_count = len([*above])
        lasted = self.wait_count + HOLD - 1  # it has lasted `HOLD` validations when it first shows
        if not measured or not self.wait_count or lasted < self.patience:
            return None
        return (
            f"The fraction of anomaly filters has been more than {self.threshold:g} above an earlier level for "
            f"{patience_in_words(lasted)}; now {self.monitor} = {self._rises[-1]:.3f}."
        )
