"""The callback that stops: an EarlyStopping on the rise of the anomaly fraction."""

from __future__ import annotations

from typing import Any

import lightning.pytorch.callbacks.early_stopping as lightning_early_stopping
import torch
from torch import Tensor

from lightning_anomaly.callbacks._base import AnyEarlyStopping
from lightning_anomaly.callbacks._processes import validates_everywhere
from lightning_anomaly.callbacks._reports import find_watcher
from lightning_anomaly.callbacks._subject import Subject
from lightning_anomaly.callbacks._sustained_rise import HOLD, THRESHOLD
from lightning_anomaly.checks import check_bool, check_fraction, check_integer, check_text

__all__ = ["AnomalyEarlyStopping"]


class AnomalyEarlyStopping(AnyEarlyStopping):
    """Stops training when the fraction of anomaly filters has risen and stays up.

    It monitors `<log_key_prefix>/rise`, which an `AnomalyFilterCallback` logs and which is 0 while the fraction is flat
    or falls: then it never stops a run, however long. It is an `EarlyStopping`, so whatever in Lightning knows one
    knows this one, and it may stand beside one on `val_loss`.

    Whether a rise means overfitting is the source paper's hypothesis, and an open question: see the recipes for runs in
    which the network overfits and the fraction falls. In those it does not stop.

    What the defaults cost and find, in simulations of 1,000 runs of 100 validations with 160 filters, each flagged with
    a constant probability, independently and anew at each validation: at 0.05, 0.1 and 0.3 no run is stopped, at 0.5
    three are; with 22 filters at 0.05 five. A step from 0.05 to 0.25 is found within `patience` validations in every
    run, one to 0.15 in 7 of 10, and in 9 of 10 within twice as many. Verdicts that persist make the fraction wander:
    where each filter keeps its own from one validation to the next with probability 0.8, 48 of 1,000 runs are stopped
    at 0.05, but 714 at 0.3. A signal that is both high and wandering needs a higher `threshold`: with 0.15 one is.

    Args:
        threshold: The rise, as a fraction of the filters, that has to be exceeded.
        patience: Number of validations for which it has to be exceeded, at least 5: the first 5 of a rise are part of
            the monitored value, which shows no rise that did not last so long.
        log_key_prefix: That of the `AnomalyFilterCallback`.
        verbose: Whether the reason is logged when training stops; `stopping_reason_message` has it in any case.

    Raises:
        ValueError: If an argument is not allowed, or if no `AnomalyFilterCallback` logs under the prefix.

    Examples:
        >>> stopping = AnomalyEarlyStopping(threshold=0.1)
        >>> stopping.monitor, stopping.patience
        ('anomaly_filters/rise', 6)
    """

    def __init__(
        self,
        threshold: float = THRESHOLD,
        patience: int = 6,
        log_key_prefix: str = "anomaly_filters",
        verbose: bool = True,
    ) -> None:
        super().__init__(
            monitor=f"{check_text('log_key_prefix', log_key_prefix)}/rise",
            mode="min",
            patience=check_integer("patience", patience, HOLD),
            divergence_threshold=check_fraction("threshold", threshold, zero=True),
            verbose=check_bool("verbose", verbose),
        )
        self.log_key_prefix = log_key_prefix
        self._everywhere = True
        self._subject = Subject()
        self._forget()

    def _forget(self) -> None:
        """Starts anew: what is known is about another model."""
        self.wait_count, self.stopped_epoch = 0, 0
        self.best_score = torch.tensor(torch.inf)
        self.stopping_reason_message: str | None = None  # Lightning's own attributes, where it has them
        if reasons := _stopping_reasons():
            self.stopping_reason = reasons.NOT_STOPPED

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._forget()
        self._subject.load()
        super().load_state_dict(state_dict)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Makes sure that somebody logs what is monitored."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            find_watcher(trainer, self.log_key_prefix, "AnomalyEarlyStopping")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Drops what was seen of another model."""
        if self._subject.changes_to(pl_module):
            self._forget()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remembers whom a checkpoint was loaded for."""
        self._subject.meet(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Finds out whether there will be anything to stop for."""
        self._everywhere = validates_everywhere(trainer)

    def _run_early_stopping_check(self, trainer: Any) -> None:
        """Where nothing is analysed (no validation, `barebones`) there is nothing to stop for, and nothing to say."""
        if not self._everywhere:
            return
        # Read first, then ask the others: reading may reduce what was logged, and where a progress bar has done so in
        # the one process that shows it, the others have yet to answer.
        found = self.monitor in trainer.callback_metrics
        if trainer.strategy.reduce_boolean_decision(found, all=True):
            super()._run_early_stopping_check(trainer)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        """Whether to stop, and why. `wait_count` counts the last values in a row that exceed the threshold."""
        self.best_score = torch.minimum(torch.as_tensor(self.best_score, device=current.device), current)
        threshold = self.divergence_threshold
        assert threshold is not None
        self.wait_count = self.wait_count + 1 if current > threshold else 0
        # The first value of a rise appears when it has lasted HOLD validations.
        lasted = self.wait_count + HOLD - 1
        if self.wait_count == 0 or lasted < self.patience:
            return False, None
        if reasons := _stopping_reasons():
            self.stopping_reason = reasons.DIVERGENCE_THRESHOLD
        self.stopping_reason_message = (
            f"Anomaly filters have risen: for {lasted} validations their fraction has been more than {threshold:g} "
            f"above an earlier level, by now {self.monitor} = {float(current):.3f}."
        )
        return True, self.stopping_reason_message


def _stopping_reasons() -> Any:
    """Lightning's enumeration of reasons; None before it had one."""
    return getattr(lightning_early_stopping, "EarlyStoppingReason", None)
