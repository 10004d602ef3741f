"""When the figures of a report go to a Trainer's loggers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_anomaly.callbacks.figures import log_layout, log_report, pick_outliers
from lightning_anomaly.callbacks.probe import probe_images
from lightning_anomaly.report import AnomalyReport

__all__ = ["FigureSchedule"]


class FigureSchedule:
    """Figures at the 1st, 2nd, 4th, 8th, ... analysis and after the last: few in a long training, close at its start.

    Which analysis is the last is known only afterwards. So of each one the few images stay that its figures would show,
    until the next; the others go when it ends.

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
        self._pending: tuple[int, Tensor | None] | None = None

    @property
    def _due(self) -> bool:
        number = self._analyses + 1
        return self._enabled and number & (number - 1) == 0

    def keep_images(self, trainer: Any, limit: int, batch: Any) -> None:
        """Keeps the images of a batch, up to `limit`, until `forget_images`, if there may be figures of them."""
        # Of several processes each sees a part of the probe, and its images do not travel.
        wanted = self._enabled and trainer.loggers and trainer.world_size == 1
        missing = limit - sum(map(len, self._images))
        images = probe_images(batch) if wanted and missing > 0 else None
        if images is not None:
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
        self._pending = (step, pick_outliers(report, self._joined_images())) if self._enabled else None
        if self._due:
            self._log_pending(trainer, report)
        self._analyses += 1

    def finish(self, trainer: Any, report: AnomalyReport | None) -> None:
        """Logs the layout and the figures of the last analysis, if that has not happened."""
        if not self._layout_done and report is not None:
            self._layout_done = log_layout(trainer, self._prefix, self._overlay_tags, last_chance=True)
        if report is not None:
            self._log_pending(trainer, report)

    def _log_pending(self, trainer: Any, report: AnomalyReport) -> None:
        if self._pending is not None:
            step, outliers = self._pending
            log_report(trainer.loggers, self._prefix, report, outliers, step)
            self._pending = None

    def _joined_images(self) -> Tensor | None:
        if len({images.shape[1:] for images in self._images}) != 1:  # none, or of several sizes
            return None
        return torch.cat(self._images)
