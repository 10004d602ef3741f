"""The callback that stops: an EarlyStopping on what the network's output or its anomaly filters say of overfitting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning.pytorch.callbacks.early_stopping as lightning_early_stopping
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_anomaly.callbacks import _history
from lightning_anomaly.callbacks._base import AnyEarlyStopping, GuardedCallback, all_validate
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback, find_watcher
from lightning_anomaly.callbacks.two_sample import TwoSampleCallback
from lightning_anomaly.checks import check_bool, check_fraction, check_integer, check_text
from lightning_anomaly.two_sample import rise
from lightning_anomaly.two_sample.report import TwoSampleReport

__all__ = ["AnomalyEarlyStopping"]


@dataclass(frozen=True)
class _Signal:
    """What can be watched."""

    name: str  # its key, behind the prefix
    threshold: float  # what has to be exceeded
    patience: int  # for how many validations
    hold: int  # how many of these are part of the value already
    found_anew: str  # the entry of a history that says whether a validation found it; else an earlier value is repeated


_FILTERS = _Signal("rise", _history.THRESHOLD, _history.PATIENCE, _history.HOLD, found_anew="live")
_OUTPUT = _Signal("confidence_rise", rise.THRESHOLD, patience=1, hold=1, found_anew="compares_output")
_FEW = 100  # of fewer images the standard error is not to be trusted


class AnomalyEarlyStopping(GuardedCallback, AnyEarlyStopping):
    """Stop a training that overfits, by a signal that needs no validation labels.

    **Beside a `TwoSampleCallback`** it watches `<log_key_prefix>/confidence_rise` and stops when the output has become
    surer of training images: when, relative to them, the network expects 10% more errors on validation images than at
    its lowest level, and chance does not explain it. So it has to see a training from its beginning, and about 1,000
    images of each kind. See `docs/results/stopping_output.md` for what it cost and found.

    **Beside an `AnomalyFilterCallback` alone** it watches `<log_key_prefix>/rise`, which is 0 while the fraction of
    anomaly filters is flat or falls: then it never stops a run, however long. Whether a rise means overfitting is the
    source paper's hypothesis; in our trainings it did not. Chance alone stops few runs while the fraction is
    low. One that is both high and wandering, as of few filters or of verdicts that persist, needs a higher `threshold`.

    Which signal it watches is said when the fit begins, and why it stopped, in one sentence, when it does. It is an
    `EarlyStopping`, so whatever in Lightning knows one knows this one, and it may stand beside one on `val_loss`; from
    a module's `configure_callbacks`, return both, as those replace the Trainer's of the same kind. The weights stay
    those of the last epoch; a `ModelCheckpoint` keeps others.

    Args:
        threshold: The rise that has to be exceeded, 0 to 1; None takes 0.1, as a fraction of the lowest level, for the
            output, and 0.05, as a fraction of the filters, for anomaly filters.
        patience: Number of validations in a row for which it has to, not counting those that find nothing anew; None
            takes 1 for the output, and 6 for anomaly filters, at least 5: the first 5 of a rise are part of the value,
            which shows none that lasted less.
        log_key_prefix: That of the callback to watch; None takes the first TwoSampleCallback of the Trainer, and
            without one the first AnomalyFilterCallback.
        verbose: Whether it says what it watches, and why it stops; `stopping_reason_message` has that in any case.

    Raises:
        ValueError: If an argument is not allowed, or if there is no callback that it could watch.

    Examples:
        >>> stopping = AnomalyEarlyStopping()  # `TwoSampleCallback(train_images, val_images)` stands beside it
        >>> stopping.stopping_reason_message is None
        True
    """

    def __init__(
        self,
        threshold: float | None = None,
        patience: int | None = None,
        log_key_prefix: str | None = None,
        verbose: bool = True,
    ) -> None:
        self._threshold = None if threshold is None else check_fraction("threshold", threshold, zero=True)
        self._patience = None if patience is None else check_integer("patience", patience, 1)
        self.log_key_prefix = None if log_key_prefix is None else check_text("log_key_prefix", log_key_prefix)
        # Checked where the values come from: a checkpoint that is written there, before the epoch ends, has them all.
        super().__init__(monitor="", mode="min", verbose=check_bool("verbose", verbose), check_on_train_epoch_end=False)
        # Until there is a Trainer.
        self._watch(*(("two_sample", _OUTPUT) if self.log_key_prefix is None else (self.log_key_prefix, _FILTERS)))
        self._warned: set[str] = set()
        self._forget()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint, by what it watches and what it was given."""
        given = {"threshold": self._threshold, "patience": self._patience}
        own = "".join(f"[{name}={value}]" for name, value in given.items() if value is not None)
        return f"{super().state_key}{own}"

    def _watch(self, prefix: str, signal: _Signal) -> None:
        self._signal = signal
        self._watched: AnomalyFilterCallback | TwoSampleCallback | None = None
        self.monitor = f"{prefix}/{signal.name}"
        self.divergence_threshold = signal.threshold if self._threshold is None else self._threshold
        self.patience = signal.patience if self._patience is None else self._patience

    def _forget(self) -> None:
        """Start anew: what is known is about another model."""
        self._warned.clear()
        self.wait_count = 0
        self.best_score = torch.tensor(torch.inf)
        self._begin()

    def _begin(self) -> None:
        """Know no reason to stop."""
        self.stopped_epoch = 0
        self.stopping_reason_message: str | None = None  # Lightning's own attributes, where it has them
        if reasons := _stopping_reasons():
            self.stopping_reason = reasons.NOT_STOPPED

    def _restore(self, state_dict: dict[str, Any]) -> None:
        # The patience is that of this fit, as the threshold is.
        AnyEarlyStopping.load_state_dict(self, {**state_dict, "patience": self.patience})

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find out what there is to watch, and say so."""
        if stage == "fit":
            self._choose(trainer)
            self._tell()
        else:  # the key of its state in a checkpoint that is tested is by what it watched
            with suppress(ValueError):
                self._choose(trainer)
        super().setup(trainer, pl_module, stage)

    def _choose(self, trainer: Any) -> None:
        """Take the signal of the callback with the prefix, or of the first one.

        Raises:
            ValueError: If there is none, or `patience` does not fit the signal.
        """
        compared = [callback for callback in trainer.callbacks if isinstance(callback, TwoSampleCallback)]
        compared = [own for own in compared if self.log_key_prefix in (None, own.log_key_prefix)]
        asking = "AnomalyEarlyStopping should be used with a TwoSampleCallback or"
        watched = compared[0] if compared else find_watcher(trainer, self.log_key_prefix, asking)
        self._watch(watched.log_key_prefix, _OUTPUT if compared else _FILTERS)
        self._watched = watched
        check_integer("patience", self.patience, self._signal.hold)

    def _tell(self) -> None:
        """Say what it watches, and if that is little."""
        compared = self._watched if isinstance(self._watched, TwoSampleCallback) else None
        if compared is not None:
            fewest = min(len(compared.train_inputs), len(compared.val_inputs))
            if fewest < _FEW:
                rank_zero_warn(
                    f"AnomalyEarlyStopping judges by {fewest} images of one kind, of which a few may decide: give its "
                    "TwoSampleCallback about 1,000 of each."
                )
        if self.verbose:
            earliest = f", after {rise.WINDOW + self.patience} validations at the earliest" if compared else ""
            rank_zero_info(
                f"AnomalyEarlyStopping watches '{self.monitor}' and stops when it has been above "
                f"{self.divergence_threshold:g} for {self.patience} validation{'s' * (self.patience > 1)} in a "
                f"row{earliest}."
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop what was seen of another model, and why an earlier fit of this one was stopped."""
        super().on_fit_start(trainer, pl_module)
        self._begin()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing: each validation is judged when it ends."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the training if it is time, in all processes if in one."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run or not all_validate(trainer):
            return
        reason: str | None = None
        with self._guard("decide whether to stop"):
            # Reading may reduce what was logged, which all processes do together.
            value = trainer.callback_metrics.get(self.monitor)
            if value is not None:
                reason = self._reason_to_stop(value)
        if trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            self._stop(trainer, reason)

    def _reason_to_stop(self, value: Tensor) -> str | None:
        """Count a validation's value, and say in a sentence why the training should stop; None if it should not.

        `wait_count` counts the last values in a row that exceed the threshold.
        """
        history: Sequence[Any] = [] if self._watched is None else self._watched.history
        if history and not history[-1][self._signal.found_anew]:
            return None  # an earlier value, logged again
        self.best_score = torch.minimum(torch.as_tensor(self.best_score, device=value.device), value)
        threshold = self.divergence_threshold
        assert threshold is not None
        self.wait_count = self.wait_count + 1 if value > threshold else 0
        # The first value of a rise appears when it has lasted `hold` validations.
        lasted = self.wait_count + self._signal.hold - 1
        return self._why(lasted, threshold, float(value)) if self.wait_count and lasted >= self.patience else None

    def _stop(self, trainer: Any, reason: str | None) -> None:
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason_message = reason
        if reasons := _stopping_reasons():
            self.stopping_reason = reasons.DIVERGENCE_THRESHOLD
        if reason and self.verbose:
            rank_zero_info(reason)

    def _why(self, lasted: int, threshold: float, value: float) -> str:
        if self._signal is _FILTERS:
            return (
                f"Anomaly filters have risen: for {lasted} validations their fraction has been more than {threshold:g} "
                f"above an earlier level, by now {self.monitor} = {value:.3f}."
            )
        report = None if self._watched is None else self._watched.report
        where = ""
        if isinstance(report, TwoSampleReport) and report.where != "nowhere":
            where = f", and the two are told apart {report.where}"
        return (
            f"The network knows its training images: relative to them it expects {100 * value:.0f}% more errors on "
            f"validation images than at its lowest level ({self.monitor} = {value:.3f}){where}."
        )


def _stopping_reasons() -> Any:
    """Lightning's enumeration of reasons; None before it had one."""
    return getattr(lightning_early_stopping, "EarlyStoppingReason", None)
