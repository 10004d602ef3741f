"""Figures and the filter browser: what goes to a Trainer's loggers, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_anomaly.browser import EpochPoints, page_text
from lightning_anomaly.callbacks._loggers import log_figure, log_overlay_layout, log_page, loss_tags
from lightning_anomaly.capture.drawing import drawn
from lightning_anomaly.plots import FIGURES, outlier_images
from lightning_anomaly.report import AnomalyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Guard = Callable[[str], AbstractContextManager[None]]  # of a callback, see `GuardedCallback._guard`


class FigureSchedule:
    """Figures and filter browser of a fit, at the 1st, 2nd, 4th, 8th, ... analysis and after the last.

    Which analysis is the last is known only afterwards: what they show of one stays until the next. The layout of the
    charts is logged even if neither is enabled.
    """

    def __init__(self, prefix: str, overlay_tags: list[str] | None, figures: bool, guard: Guard) -> None:
        self._prefix = prefix
        self._overlay_tags = overlay_tags
        self._figures = figures
        self._guard = guard
        self._layout_done = False
        self._pending: tuple[AnomalyReport, Tensor | None, Mapping[str, Any], int] | None = None
        self._drawn = False  # whether figures of what is pending were logged
        self._epochs = EpochPoints()

    def lay_out(self, trainer: Any, last_chance: bool = False) -> None:
        """Lay losses and the fraction of anomaly filters into one chart, once the losses' names are known.

        Call it in all processes, in `on_validation_end` and `on_fit_end` alone: reading `trainer.logged_metrics` may
        reduce what was logged, which one process must not do by itself, nor all of them before Lightning does. A
        training loss that is logged by epoch has no value in the first validation, and TensorBoard takes one layout
        from a run.
        """
        if self._layout_done:
            return
        losses = self._overlay_tags or [*loss_tags(trainer.logged_metrics).values()]
        waiting = len(losses) < 2 or (losses[0].endswith("_step") and trainer.current_epoch == 0)
        if self._overlay_tags is None and waiting and not last_chance:
            return
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                with self._guard(f"log a chart layout to {type(logger).__name__}"):
                    log_overlay_layout(logger, [*losses, f"{self._prefix}/fraction"], self._prefix)
        self._layout_done = True

    def take(
        self, report: AnomalyReport, images: Tensor | None, told: Mapping[str, Any], epoch: int, step: int
    ) -> None:
        """Keep what is shown of an analysis, and what a page is `told` of its samples, until the next."""
        outliers = None
        if self._figures and images is not None and len(images) == report.n_samples:
            # Signals are drawn as curves.
            shown = images if images.ndim > 3 else drawn(images, images).permute(0, 3, 1, 2)
            outliers = outlier_images(report, shown)
        self._pending, self._drawn = (report, outliers, told, step), False
        if report.pictures is not None:
            self._epochs.add(report, epoch, step)

    def show(self, trainer: Any, history: list[dict[str, Any]], last: bool = False) -> None:
        """Log what is due, or not shown yet after the `last` analysis; after `remember_losses`.

        The page of the last analysis is logged once more: the training loss of its epoch is known only now.
        """
        due = not self._drawn and is_due(sum(entry["analysed"] for entry in history))
        if self._pending is None or not (last or due):
            return
        report, outliers, told, step = self._pending
        if self._figures and not self._drawn and report.layers:
            for name, draw in FIGURES.items():
                figure = partial(draw, report, outliers)
                log_drawn(trainer.loggers, f"{self._prefix}/{name}", figure, step, self._guard)
        self._drawn = True
        if last:
            self._pending = None
        if report.pictures is not None:
            title = f"Anomaly filters, step {step:,}"
            frames = self._epochs.before(report, step)
            page = page_text(report, title, history=history, frames=frames, **told)
            for logger in trainer.loggers:
                with self._guard(f"log a page to {type(logger).__name__}"):
                    log_page(logger, f"{self._prefix}/browser", page, step)


def is_due(number: int) -> bool:
    """Whether a figure belongs to the 1st, 2nd, 4th, 8th, ... of something."""
    return number & (number - 1) == 0


def log_drawn(loggers: list[Any], name: str, draw: Callable[[], Figure | None], step: int, guard: Guard) -> None:
    """Draw a figure, if there is anything to show, and log it to each logger."""
    if not loggers:
        return
    figure = draw()
    if figure is not None:
        for logger in loggers:
            with guard(f"log a figure to {type(logger).__name__}"):
                log_figure(logger, name, figure, step)


def remember_losses(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Put losses into the entries that they belong to; call it in all processes, as `lay_out`.

    A validation loss is known when its validation ends, and that of a training step as well. An epoch's mean of the
    training loss is known after the validation in it: when the next epoch starts, or the fit ends.
    """
    results = trainer.fit_loop.epoch_loop._results.values()
    means = {result.meta.name for result in results if result.meta.on_epoch}
    metrics = trainer.logged_metrics
    for kind, name in loss_tags(metrics).items():
        logged = {name, name.removesuffix("_epoch"), name.removesuffix("_step")}
        late = kind == "training" and not means.isdisjoint(logged)
        owners = [entry for entry in history if not late or entry["epoch"] == trainer.current_epoch - 1]
        if late == epoch_ended and owners:
            owners[-1].setdefault("losses", {})[name] = float(metrics[name])
