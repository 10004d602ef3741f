"""When the figures of a report go to a Trainer's loggers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.callbacks.figures import log_layout, log_report
from lightning_anomaly.callbacks.probe import probe_images
from lightning_anomaly.report import AnomalyReport

__all__ = ["FigureSchedule"]


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
            log_report(trainer.loggers, self._prefix, report, self._joined_images(), step)
            self._pending = None
        else:
            self._pending = step
        self._analyses += 1

    def finish(self, trainer: Any, report: AnomalyReport | None) -> None:
        """Logs the layout and the figures of the last analysis, if that has not happened."""
        if not self._layout_done and report is not None:
            self._layout_done = log_layout(trainer, self._prefix, self._overlay_tags, last_chance=True)
        if self._enabled and self._pending is not None and report is not None:
            log_report(trainer.loggers, self._prefix, report, None, self._pending)
            self._pending = None

    def _joined_images(self) -> Tensor | None:
        if len({images.shape[1:] for images in self._images}) != 1:  # none, or of several sizes
            return None
        return torch.cat(self._images)
