"""What a callback needs that acts on reports: the callback that watches, found in the Trainer or its own."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.callbacks._base import AnyCallback
from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.pruning.selection import Summary, summarise
from lightning_anomaly.report import AnomalyReport

__all__ = ["ReportReader", "find_watcher", "watched_prefixes"]

_OWN = "anomaly_filters"  # `log_key_prefix` of a watcher that a callback owns, if nothing else is asked for


def find_watcher(trainer: Any, prefix: str | None) -> AnomalyFilterCallback | None:
    """The AnomalyFilterCallback of a Trainer, wherever it stands in the list.

    Args:
        trainer: The Trainer.
        prefix: Its `log_key_prefix`; None takes the first one.

    Returns:
        The callback; None if the Trainer has none at all.

    Raises:
        ValueError: If there are some, but none with this prefix.
    """
    watchers = [callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback)]
    # One that another callback owns already, in the order in which callbacks are set up.
    owned = (callback.own for callback in trainer.callbacks if isinstance(callback, ReportReader))
    watchers += [watcher for watcher in owned if watcher is not None]
    named = [watcher for watcher in watchers if prefix in (None, watcher.log_key_prefix)]
    if watchers and not named:
        raise ValueError(
            f"An AnomalyFilterCallback with `log_key_prefix = {prefix!r}` should be among the Trainer's callbacks. "
            f"Found only {[watcher.log_key_prefix for watcher in watchers]}."
        )
    return named[0] if named else None


def watched_prefixes(trainer: Any) -> list[str]:
    """The `log_key_prefix` of each AnomalyFilterCallback that a Trainer has, or will have when all are set up."""
    listed = [c.log_key_prefix for c in trainer.callbacks if isinstance(c, AnomalyFilterCallback)]
    return listed or sorted({c.prefix or _OWN for c in trainer.callbacks if isinstance(c, ReportReader)})


class ReportReader(AnyCallback):
    """Collects the last reports of the AnomalyFilterCallback in the Trainer, or runs one of its own if there is none.

    Args:
        prefix: The `log_key_prefix` of the one to read; None takes the first one.
        last_reports: Number of reports to keep.

    Attributes:
        watcher: The AnomalyFilterCallback that is read; None before `setup`.
        own: The same, if it is not in the Trainer's list and gets its hooks from here.
        summaries: The last reports, oldest first.
    """

    def __init__(self, prefix: str | None, last_reports: int) -> None:
        self.prefix = prefix
        self.last_reports = last_reports
        self.watcher: AnomalyFilterCallback | None = None
        self.own: AnomalyFilterCallback | None = None
        self.summaries: list[Summary] = []
        self._seen: AnomalyReport | None = None

    @property
    def rise(self) -> float:
        """The watcher's rise at the last validation; 0 before there was one."""
        history = [] if self.watcher is None else self.watcher.history
        return float(history[-1]["metrics"]["rise"]) if history else 0.0

    def forget(self) -> None:
        """Drops the reports on another model."""
        self.summaries = []
        self._seen = None if self.watcher is None else self.watcher.report

    def state_dict(self) -> dict[str, Any]:
        """The summaries, and the state of an own watcher, as plain values."""
        return {"summaries": self.summaries, "watcher": None if self.own is None else self.own.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.forget()
        self.summaries = list(state_dict["summaries"])
        if self.own is not None and state_dict["watcher"] is not None:
            self.own.load_state_dict(state_dict["watcher"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finds who watches, or takes that over."""
        kept, self.own = self.own, None
        self.watcher = find_watcher(trainer, self.prefix)
        if self.watcher is None:
            self.own = self.watcher = kept or AnomalyFilterCallback(log_key_prefix=self.prefix or _OWN)
            self.own.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_validation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_validation_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remembers a new report. By now the watcher has it, wherever it stands in the list."""
        report = None if self.watcher is None else self.watcher.report
        if trainer.state.fn == "fit" and report is not None and report is not self._seen:
            self._seen = report
            self.summaries = [*self.summaries, summarise(report)][-self.last_reports :]

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_fit_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Passes on."""
        if self.own is not None:
            self.own.teardown(trainer, pl_module, stage)
