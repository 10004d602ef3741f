"""Which figures of a report go to a Trainer's loggers, and when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.callbacks.probe import probe_images
from lightning_anomaly.loggers import log_figure, log_overlay_layout, loss_tags
from lightning_anomaly.plots import filter_figure, outlier_figure, verdict_map
from lightning_anomaly.report import AnomalyReport

__all__ = ["FigureSchedule", "log_layout", "log_report"]


class FigureSchedule:
    """Figures at the 1st, 2nd, 4th, 8th, ... analysis and after the last: few in a long training, close at its start.

    Args:
        prefix: What the names of figures and keys begin with.
        overlay_tags: See `log_layout`.
        enabled: Whether there are figures at all; the layout of the charts is always logged.
    """

    def __init__(self, prefix: str, overlay_tags: list[str] | None, enabled: bool) -> None:
        self._prefix = prefix
        self._overlay_tags = overlay_tags
        self._enabled = enabled
        self._analyses = 0
        self._images: list[Tensor] = []
        self.start()

    def start(self) -> None:
        """Begins a fit."""
        self._layout_done = False
        self._pending: int | None = None

    @property
    def _due(self) -> bool:
        number = self._analyses + 1
        return self._enabled and number & (number - 1) == 0

    def keep_images(self, trainer: Any, limit: int, batch: Any) -> None:
        """Keeps the images of a batch, up to `limit`, for the figures of the coming analysis if there will be any."""
        images = probe_images(batch) if self._due and trainer.loggers else None
        missing = limit - sum(map(len, self._images))
        if images is not None and missing > 0:
            self._images.append(images[:missing])

    def forget_images(self) -> None:
        """Drops the images."""
        self._images = []

    def log(self, trainer: Any, report: AnomalyReport | None, step: int) -> None:
        """Logs what is due after a validation; `report` is None if nothing was analysed in it."""
        if not self._layout_done:
            self._layout_done = log_layout(trainer, self._prefix, self._overlay_tags)
        if report is None:
            return
        if self._due:
            log_report(trainer.loggers, self._prefix, report, torch.cat(self._images) if self._images else None, step)
            self._pending = None
        else:
            self._pending = step
        self._analyses += 1

    def finish(self, trainer: Any, report: AnomalyReport | None) -> None:
        """Logs the figures of the last analysis, if that has not happened."""
        if self._enabled and self._pending is not None and report is not None:
            log_report(trainer.loggers, self._prefix, report, None, self._pending)
            self._pending = None


def log_report(loggers: list[Any], prefix: str, report: AnomalyReport, images: Tensor | None, step: int) -> None:
    """Log the figures of a report: the clearest anomaly filters, a map of all verdicts, and the outlier images.

    Args:
        loggers: The Trainer's loggers.
        prefix: What the figures' names begin with.
        report: The report.
        images: The probe's images `(N, C, H, W)`, None if there are none.
        step: The step to log at.
    """
    if not loggers:
        return
    figures = {"filters": filter_figure(report), "verdicts": verdict_map(report) if report.layers else None}
    if images is not None and len(images) == report.n_samples:
        figures["outliers"] = outlier_figure(report, images)
    for name, figure in figures.items():
        if figure is not None:
            for logger in loggers:
                log_figure(logger, f"{prefix}/{name}", figure, step)


def log_layout(trainer: Any, prefix: str, tags: list[str] | None) -> bool:
    """Lay the losses and the anomaly count into one chart, once a training and a validation loss are known.

    Args:
        trainer: The Trainer.
        prefix: What the keys of the logged values begin with.
        tags: Tags of the losses; None finds them among the logged values.

    Returns:
        Whether that has happened.
    """
    names = [*trainer.logged_metrics, *trainer.callback_metrics]
    losses = loss_tags(names) if tags is None else tags
    if len(losses) < 2 and tags is None and trainer.current_epoch == 0:
        return False  # a training loss that is logged by epoch is not there yet in the first validation
    for logger in trainer.loggers:
        log_overlay_layout(logger, [*losses, f"{prefix}/count"], f"{prefix}")
    return True
