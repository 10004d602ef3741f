"""When the filter browser of a training is written, and what it shows of the losses."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_anomaly.browser import page_text
from lightning_anomaly.callbacks._figures import Guard, analyses, is_due
from lightning_anomaly.callbacks._loggers import log_page, loss_tags
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import Pictures

__all__ = ["BrowserSchedule", "remember_losses"]


class BrowserSchedule:
    """The browser at the 1st, 2nd, 4th, 8th, ... analysis and after the last, beside the figures.

    Args:
        prefix: What the file's name begins with.
        guard: Turns what fails in a task into a warning.
    """

    def __init__(self, prefix: str, guard: Guard) -> None:
        self._prefix = prefix
        self._guard = guard
        self.start()

    def start(self) -> None:
        """Begins a fit."""
        self._pending: tuple[AnomalyReport, Pictures, int] | None = None

    def take(self, report: AnomalyReport, pictures: Pictures | str | None, step: int) -> None:
        """Keeps what the browser shows of an analysis until the next: `pictures`, or why none are; None: not wanted."""
        if isinstance(pictures, str):
            warnings.warn(f"The browser's images could not be taken: {pictures}", stacklevel=2)
        elif pictures is not None:
            self._pending = report, pictures, step

    def write(self, trainer: Any, history: list[dict[str, Any]], last: bool = False) -> None:
        """Gives the browser to the loggers, in process 0, if it is due or the last one was not."""
        if self._pending is None or not (last or is_due(analyses(history))):
            return
        report, pictures, step = self._pending
        self._pending = None
        page = page_text(report, pictures, title=f"Anomaly filters, step {step:,}", history=history)
        for logger in trainer.loggers:
            with self._guard(f"log a page to {type(logger).__name__}"):
                log_page(logger, f"{self._prefix}/browser", page, step)


def remember_losses(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Puts losses into the entries that they belong to; call it in all processes, as `lay_out`.

    A validation loss is known when its validation ends, and that of a training step as well. An epoch's mean of the
    training loss is known after the validation in it: when the next epoch starts, or the fit ends.
    """
    results = trainer.fit_loop.epoch_loop._results.values()
    means = {result.meta.name for result in results if result.meta.on_epoch}
    metrics = trainer.logged_metrics
    for name in loss_tags(metrics):
        of_validation = name in loss_tags(["loss", name])[1:]
        late = not of_validation and not means.isdisjoint(
            {name, name.removesuffix("_epoch"), name.removesuffix("_step")}
        )
        owners = [entry for entry in history if not late or entry["epoch"] == trainer.current_epoch - 1]
        if late == epoch_ended and owners:
            owners[-1].setdefault("losses", {})[name] = float(metrics[name])
