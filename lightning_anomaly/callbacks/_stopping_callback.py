"""What the early stoppings share: judge each validation, and explain the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly._internal.checks import check_bool, check_fraction
from lightning_anomaly.callbacks._guard import Guard, OnError
from lightning_anomaly.callbacks._lightning import AnyEarlyStopping, begin_stage, find_callback


class StoppingCallback(AnyEarlyStopping):
    """Judge what another callback has logged, at the end of each validation of a fit."""

    _watched_type: ClassVar[type]  # the callback whose reports it judges
    _measured_key: ClassVar[str]  # history entry that is true if the value was measured, not repeated
    _fitting: bool | None = None  # see `begin_stage`

    def __init__(self, threshold: float, patience: int, verbose: bool, on_error: OnError) -> None:
        self.threshold = check_fraction("threshold", threshold, zero=True)
        verbose = check_bool("verbose", verbose)
        # Not None: Lightning would then read `Trainer.val_check_interval`, which a time-based one does not have.
        super().__init__("rise", patience=patience, verbose=verbose, check_on_train_epoch_end=False)
        self.divergence_threshold = self.threshold
        self._guard = Guard(self, on_error)
        self._reset()

    def _reset(self) -> None:
        """Drop everything that an earlier fit left."""
        self._guard.forget_warnings()
        self.wait_count = 0
        self._rises: list[float] = []  # of each validation that measured it
        self._begin_fit()

    def _begin_fit(self) -> None:
        self.stopped_epoch = 0
        self.stopping_reason_message: str | None = None
        self._set_stopping_reason("NOT_STOPPED")

    def _set_stopping_reason(self, name: str) -> None:
        """Set Lightning's `stopping_reason`, in versions that have it."""
        if hasattr(self, "stopping_reason"):
            self.stopping_reason = getattr(type(self.stopping_reason), name)

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint, by its arguments."""
        names = ("threshold", "patience", "confirm")
        return self._generate_state_key(**{name: getattr(self, name) for name in names if hasattr(self, name)})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs, in plain types."""
        return {**super().state_dict(), "rises": list(self._rises)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless the checkpoint is only validated or tested."""
        if self._fitting is not False:
            self._reset()
            super().load_state_dict(state_dict)
            self._rises = list(state_dict["rises"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the callback whose reports are judged, and drop the state unless a fit goes on."""
        if stage == "fit":
            self._watched = find_callback(trainer, self._watched_type, type(self).__name__)
            self.monitor = f"{self._watched.log_key_prefix}/rise"
        begin_stage(self, trainer, stage)
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop the reason why a fit that goes on was stopped."""
        self._begin_fit()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Do nothing: a validation is judged when it ends, before its checkpoint is written."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop all processes if one of them decides to."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        reason = None
        with self._guard("decide whether to stop"):
            metrics = trainer.callback_metrics  # a collective call: reading may reduce what was logged
            measured = self.monitor in metrics and self._watched.history[-1][self._measured_key]
            # Rounded, as metrics are in single precision, where 0.05 is above the threshold 0.05.
            self._rises += [round(float(metrics[self.monitor]), 7)] if measured else []
            reason = self._reason_to_stop(metrics, measured)
            if self.verbose and self._guard.is_first_time("rule"):
                rank_zero_info(f"{type(self).__name__} {self._stopping_rule()}.")
        if trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
            self._set_stopping_reason("DIVERGENCE_THRESHOLD")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log why the run was stopped."""
        if self.verbose and self.stopping_reason_message is not None:
            rank_zero_info(self.stopping_reason_message)

    def _stopping_rule(self) -> str:
        """Describe what is watched and when the run is stopped."""
        raise NotImplementedError

    def _reason_to_stop(self, metrics: Mapping[str, Any], measured: bool) -> str | None:
        """Return the reason to stop after the last validation, or None; a collective call.

        The last of `_rises` is of this validation if it was `measured`.
        """
        raise NotImplementedError


def patience_in_words(count: int) -> str:
    """Write a number of validations in words."""
    return f"{count} validation{'s' * (count != 1)}"
