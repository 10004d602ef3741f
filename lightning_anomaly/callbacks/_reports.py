"""What a callback needs that acts on reports: the callback that makes them, and the last of them."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback
from lightning_anomaly.pruning.selection import Summary, summarize
from lightning_anomaly.report import AnomalyReport

__all__ = ["LastReports", "find_watcher"]


def find_watcher(trainer: Any, prefix: str | None, asking: str, other: str = "") -> AnomalyFilterCallback:
    """Find the AnomalyFilterCallback of a Trainer, wherever it stands in the list.

    Args:
        trainer: The Trainer.
        prefix: Its `log_key_prefix`; None takes the first one.
        asking: The callback that cannot do without it, for the error.
        other: What would do in its place, likewise.

    Raises:
        ValueError: If the Trainer has none with this prefix.
    """
    watchers = [callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback)]
    for watcher in watchers:
        if prefix in (None, watcher.log_key_prefix):
            return watcher
    wanted = "" if prefix is None else f" with `log_key_prefix = {prefix!r}`"
    raise ValueError(
        f"{asking} should be used with {other}an AnomalyFilterCallback{wanted} among the Trainer's callbacks. "
        f"Found {[watcher.log_key_prefix for watcher in watchers] or 'none'}."
    )


class LastReports:
    """The last reports of an AnomalyFilterCallback, in short.

    Args:
        number: How many to keep.

    Attributes:
        watcher: The AnomalyFilterCallback; None before it was found.
        summaries: The last reports, oldest first.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.watcher: AnomalyFilterCallback | None = None
        self.summaries: list[Summary] = []
        self._seen: AnomalyReport | None = None

    @property
    def rise(self) -> float:
        """The watcher's rise at the last validation; 0 before there was one."""
        history = [] if self.watcher is None else self.watcher.history
        return float(history[-1]["metrics"]["rise"]) if history else 0.0

    def restart(self, summaries: list[Summary]) -> None:
        """Go on from these: of a report that is there by now nothing is taken."""
        self.summaries = summaries[-self.number :]  # there may have been more in the fit of a checkpoint
        self._seen = None if self.watcher is None else self.watcher.report

    def look(self) -> None:
        """Remember the watcher's report, if it is a new one and of any live filter."""
        report = None if self.watcher is None else self.watcher.report
        if report is not None and report is not self._seen:
            self._seen = report
            if not report.live_in(report.layers):  # no filter could have got a vote
                return
            self.summaries = [*self.summaries, summarize(report)][-self.number :]
