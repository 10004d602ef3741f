"""The early stopping that watches anomaly filters."""

from __future__ import annotations

from lightning_anomaly.callbacks._stopping import StoppingCallback, times
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.checks import check_integer
from lightning_anomaly.two_sample.stopping import HOLD, RISE, RISE_PATIENCE, last_above

__all__ = ["AnomalyEarlyStopping"]


class AnomalyEarlyStopping(StoppingCallback):
    """Stop a run when the fraction of anomaly filters has risen and stays up.

    It watches `<log_key_prefix>/rise` of an `AnomalyFilterCallback`, which is 0 while the fraction is flat or falls:
    then it never stops a run, however long. Whether a rise means overfitting is the source paper's hypothesis; in our
    experiments it did not, see `docs/results/stopping.md`. `TwoSampleEarlyStopping` is the one that works.

    Chance stops few runs while the fraction is low. A fraction that is high and fluctuates, of few filters for example,
    needs a higher `threshold`. It is an `EarlyStopping`: it says what it watches when the first validation ends, and
    why it stopped, or why not, when the fit ends.

    Args:
        threshold: The rise that has to be exceeded, as a fraction of the filters.
        patience: Number of validations for which the rise has to last, not counting those that find nothing anew; at
            least 5, because `rise` is 0 until a rise has lasted five validations.
        log_key_prefix: That of the `AnomalyFilterCallback` to watch; None takes the first one.
        verbose: Whether it says so; `stopping_reason_message` has the reason in any case.

    Raises:
        ValueError: If an argument is not allowed, or if there is no callback that it could watch.

    Examples:
        >>> stopping = AnomalyEarlyStopping()  # an `AnomalyFilterCallback()` stands beside it
        >>> stopping.stopping_reason_message is None
        True
    """

    _watches = AnomalyFilterCallback
    _signal = "rise"
    _found_anew = "live"

    def __init__(
        self,
        threshold: float = RISE,
        patience: int = RISE_PATIENCE,
        log_key_prefix: str | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(threshold, check_integer("patience", patience, HOLD), log_key_prefix, verbose)

    def _rule(self) -> str:
        return (
            f"watches '{self.monitor}' and stops the run when it has been above {self.threshold:g} for "
            f"{times(self.patience)}, after {self.patience + HOLD} validations at the earliest"
        )

    def _lasted(self) -> int:
        """For how many validations a rise has lasted: its first value shows when it has lasted `HOLD`."""
        self.wait_count = last_above(self._rises, self.threshold)
        return self.wait_count + HOLD - 1 if self.wait_count else 0

    def _judge(self, anew: bool) -> str | None:
        if not anew or self._lasted() < self.patience:
            return None
        return (
            f"Anomaly filters have risen: for {times(self._lasted())} their fraction has been more than "
            f"{self.threshold:g} above an earlier level, by now {self.monitor} = {self._rises[-1]:.3f}."
        )

    def _state(self) -> str:
        if not self._rises:
            return "no validation analyzed a live filter"
        needed = f"needs more than {self.threshold:g} for {times(self.patience)}"
        return f"'{self.monitor}' is {self._rises[-1]:.3f} and has been up for {self._lasted()} ({needed})"
