"""The callback that stops: an EarlyStopping on what the network's output or its anomaly filters say of overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_anomaly.callbacks import _history
from lightning_anomaly.callbacks._base import AnyEarlyStopping, GuardedCallback, find_callback
from lightning_anomaly.callbacks._loggers import loss_tags
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.callbacks.two_sample import TwoSampleCallback
from lightning_anomaly.checks import check_bool, check_fraction, check_integer, check_text
from lightning_anomaly.distributed import gather_results
from lightning_anomaly.two_sample import rise, stopping
from lightning_anomaly.two_sample.report import TwoSampleReport

__all__ = ["AnomalyEarlyStopping"]


@dataclass(frozen=True)
class _Signal:
    """What can be watched."""

    name: str  # its key, behind the prefix
    threshold: float  # what has to be exceeded
    patience: int  # for how many validations
    hold: int  # how many of these are part of the value already
    first: int  # the first validation at which it can be above 0
    found_anew: str  # the entry of a history that says whether a validation found it; else an earlier value is repeated


_FILTERS = _Signal("rise", _history.THRESHOLD, _history.PATIENCE, _history.HOLD, 2 * _history.HOLD, "live")
_OUTPUT = _Signal("confidence_rise", rise.THRESHOLD, 1, 1, rise.WINDOW + 1, "compares_output")
_CONFIRMED = replace(_OUTPUT, threshold=stopping.CONFIRMED_THRESHOLD, patience=stopping.CONFIRMED_PATIENCE)
_MIN_IMAGES = 300  # images of one kind that the rule was tested with


class AnomalyEarlyStopping(GuardedCallback, AnyEarlyStopping):
    """Stop a training that overfits: when the network knows its training images and the validation loss agrees.

    **Beside a `TwoSampleCallback`** it waits for two things. A gap opens: relative to training images, the network
    expects 5% more errors on validation images than at its lowest level (`<log_key_prefix>/confidence_rise`), and
    chance does not explain it. That is not yet harm: on few images a network improves on validation images long after.
    So the validation loss, as an exponential average, must not have improved for three validations either. Without a
    validation loss it warns and does not stop; `confirm=None` stops by the gap alone, from 10% on, which is too early
    on small data. It has to see a training from its beginning, and about 1,000 images of each kind. See
    `docs/results/stopping_output.md` for what it cost and found, and on which data.

    **Beside an `AnomalyFilterCallback` alone** it watches `<log_key_prefix>/rise`, which is 0 while the fraction of
    anomaly filters is flat or falls: then it never stops a run, however long. Whether a rise means overfitting is the
    source paper's hypothesis; in our trainings it did not. Chance alone stops few runs while the fraction is
    low. One that is both high and wandering, as of few filters or of verdicts that persist, needs a higher `threshold`.

    Which signal it watches is said when the fit begins, and why it stopped, in one sentence, when it does. It is an
    `EarlyStopping`, so whatever in Lightning knows one knows this one, and it may stand beside one on `val_loss`; from
    a module's `configure_callbacks`, return both, as those replace the Trainer's of the same kind. The weights stay
    those of the last epoch; a `ModelCheckpoint` keeps others.

    Args:
        threshold: The rise that has to be exceeded, 0 to 1; None takes 0.05, as a fraction of the lowest level, for the
            output (0.1 with `confirm=None`), and 0.05, as a fraction of the filters, for anomaly filters.
        patience: Number of validations in a row without a lower loss; None takes 3. With `confirm=None`, and for
            anomaly filters, the number for which the rise has to be above the threshold, not counting validations that
            find nothing anew; None takes 1, and 6 for anomaly filters, at least 5: the first 5 of a rise are part of
            the value, which shows none that lasted less.
        log_key_prefix: That of the callback to watch; None takes the first TwoSampleCallback of the Trainer, and
            without one the first AnomalyFilterCallback.
        verbose: Whether it says what it watches, and why it stops; `stopping_reason_message` has that in any case.
        confirm: The name of the logged metric that has to confirm the gap, the lower the better; "auto" finds the
            validation loss among them, None stops by the gap alone. Anomaly filters need none.

    Raises:
        ValueError: If an argument is not allowed, or if there is no callback that it could watch.

    Examples:
        >>> stopping = AnomalyEarlyStopping()  # a `TwoSampleCallback()` stands beside it
        >>> stopping.stopping_reason_message is None
        True
    """

    def __init__(
        self,
        threshold: float | None = None,
        patience: int | None = None,
        log_key_prefix: str | None = None,
        verbose: bool = True,
        confirm: str | None = "auto",
    ) -> None:
        self._threshold = None if threshold is None else check_fraction("threshold", threshold, zero=True)
        self._patience = None if patience is None else check_integer("patience", patience, 1)
        self.log_key_prefix = None if log_key_prefix is None else check_text("log_key_prefix", log_key_prefix)
        self.confirm = None if confirm is None else check_text("confirm", confirm)
        super().__init__(monitor="", mode="min", verbose=check_bool("verbose", verbose))
        # Until there is a Trainer.
        self._watch(self.log_key_prefix or "two_sample", self.log_key_prefix is None)
        self._forget()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint, by what it watches and what it was given."""
        given = {"threshold": self._threshold, "patience": self._patience}
        own = "".join(f"[{name}={value}]" for name, value in given.items() if value is not None)
        return f"{super().state_key}{own}{'' if self.confirm == 'auto' else f'[confirm={self.confirm}]'}"

    def _watch(self, prefix: str, compares: bool) -> None:
        output = _OUTPUT if self.confirm is None else _CONFIRMED
        self._signal = signal = output if compares else _FILTERS
        self.monitor = f"{prefix}/{signal.name}"
        self.divergence_threshold = signal.threshold if self._threshold is None else self._threshold
        self.patience = signal.patience if self._patience is None else self._patience

    def _forget(self) -> None:
        super()._forget()
        self.wait_count = 0
        self._rises: list[float] = []  # of each validation that found it anew
        self._losses: list[float] = []  # of each validation that has one
        self._begin()

    def _begin(self) -> None:
        """Know no reason to stop."""
        self.stopped_epoch = 0
        self.stopping_reason_message: str | None = None
        self._name_reason("NOT_STOPPED")

    def _name_reason(self, name: str) -> None:
        """Set Lightning's own attribute, where it has it."""
        if hasattr(self, "stopping_reason"):
            self.stopping_reason = getattr(type(self.stopping_reason), name)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs, in plain types."""
        return {**super().state_dict(), "rises": list(self._rises), "losses": list(self._losses)}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        # The patience is that of this fit, as the threshold is.
        AnyEarlyStopping.load_state_dict(self, {**state_dict, "patience": self.patience})
        self._rises = list(state_dict.get("rises", [math.inf] * self.wait_count))  # older checkpoints have the count
        self._losses = list(state_dict.get("losses", []))

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
        """Take the signal of the callback with the prefix, or of the first one; `patience` has to fit it."""
        kinds = [TwoSampleCallback, AnomalyFilterCallback]
        self._watched = find_callback(trainer, kinds, self.log_key_prefix, "AnomalyEarlyStopping")
        self._watch(self._watched.log_key_prefix, isinstance(self._watched, TwoSampleCallback))
        check_integer("patience", self.patience, self._signal.hold)

    def _tell(self) -> None:
        """Say what it watches."""
        if not self.verbose:
            return
        first, validations = self._signal.first, f"{self.patience} validation{'s' * (self.patience > 1)} in a row"
        if self._signal is _CONFIRMED:
            loss = "the validation loss" if self.confirm == "auto" else f"'{self.confirm}'"
            when = f"is above {self.divergence_threshold:g} and {loss} has not improved for {validations}"
            earliest = max(first, 1 + self.patience)
        else:
            when = f"has been above {self.divergence_threshold:g} for {validations}"
            earliest = first + self.patience - self._signal.hold
        rank_zero_info(
            f"AnomalyEarlyStopping watches '{self.monitor}' and stops when it {when}, after {earliest} validations at "
            "the earliest."
        )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop what was seen of another model, and why an earlier fit of this one was stopped."""
        super().on_fit_start(trainer, pl_module)
        self._begin()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Do nothing: a validation is judged when it ends, before a checkpoint of it is written."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the training if it is time, in all processes if in one."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        reason = None
        with self._guard("decide whether to stop"):
            # Reading may reduce what was logged, which all processes do together.
            metrics = trainer.callback_metrics
            losses = gather_results(lambda: self._loss_in(metrics))  # each has its part of the validation images
            if self.monitor in metrics:
                value = round(float(metrics[self.monitor]), 7)  # 0.05 in single precision is above 0.05
                reason = self._reason_to_stop(value, [loss for loss in losses if loss is not None])
        if trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
            self._name_reason("DIVERGENCE_THRESHOLD")
            if reason and self.verbose:
                rank_zero_info(reason)

    def _loss_in(self, metrics: Mapping[str, Any]) -> float | None:
        """The metric that has to confirm; None, with a warning, if there is none."""
        if self._signal is not _CONFIRMED:
            return None
        name = loss_tags(metrics).get("validation") if self.confirm == "auto" else self.confirm
        if name is not None and name in metrics:
            return float(metrics[name])
        looked_for = "no validation loss" if name is None else f"no '{name}'"
        self._warn_once(
            "no loss",
            f"AnomalyEarlyStopping finds {looked_for} among the logged metrics, so it will not stop this fit: log one, "
            "name it as `confirm`, or give `confirm=None` to stop by the gap alone.",
        )
        return None

    def _reason_to_stop(self, value: float, losses: list[float]) -> str | None:
        """Take the values of a validation, and say in a sentence why the training should stop; None if it should not.

        `wait_count` counts the last values in a row that exceed the threshold, or bring no lower loss.
        """
        confirmed, threshold = self._signal is _CONFIRMED, self.divergence_threshold
        assert threshold is not None
        self._warn_of_few_images()
        if losses:
            self._losses.append(fmean(losses))
        elif confirmed and value > threshold:
            self._warn_once("gap", f"{self._why(value, 'is above its threshold')} No loss confirms it: not stopped.")
        if self._watched.history[-1][self._signal.found_anew]:
            self._rises.append(value)
        elif not confirmed:
            return None  # an earlier value, logged again
        known = self._losses if confirmed else None
        # The first value of a rise appears when it has lasted `hold` validations.
        patience = self.patience - self._signal.hold + 1
        stops, why, self.wait_count = stopping.decide(self._rises, known, threshold, patience)
        return self._why(value, why) if stops else None

    def _warn_of_few_images(self) -> None:
        report = self._watched.report
        if isinstance(report, TwoSampleReport) and min(report.n_train, report.n_val) < _MIN_IMAGES:
            self._warn_once(
                "few images",
                f"AnomalyEarlyStopping judges by {report.n_train} training and {report.n_val} validation images, and "
                f"was tested with {_MIN_IMAGES} of each and more: give its TwoSampleCallback more.",
            )

    def _why(self, value: float, why: str) -> str:
        if self._signal is _FILTERS:
            lasted = self.wait_count + self._signal.hold - 1
            return (
                f"Anomaly filters have risen: for {lasted} validations their fraction has been more than "
                f"{self.divergence_threshold:g} above an earlier level, by now {self.monitor} = {value:.3f}."
            )
        report = self._watched.report
        told_apart = isinstance(report, TwoSampleReport) and report.where != "nowhere"
        where = f" The two are told apart {report.where}." if told_apart else ""
        return (
            f"The network knows its training images: relative to them it expects {100 * value:.0f}% more errors on "
            f"validation images than at its lowest level, so {self.monitor} = {value:.3f} {why}.{where}"
        )
