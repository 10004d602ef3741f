"""Figures and the filter browser: what goes to a Trainer's loggers, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_anomaly.browser import EpochPoints
from lightning_anomaly.callbacks._loggers import log_figure, log_page
from lightning_anomaly.images.thumbnails import drawn
from lightning_anomaly.plots import curves_figure, outlier_images
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.figures import FIGURES
from lightning_anomaly.two_sample.loss_names import loss_tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Guard = Callable[[str], AbstractContextManager[None]]  # of a callback, see `GuardedCallback._guard`


class FigureSchedule:
    """Figures and filter browser of a fit, at the 1st, 2nd, 4th, 8th, ... analysis and after the last.

    Which analysis is the last is known only afterwards: what they show of one stays until the next.
    """

    def __init__(self, prefix: str, figures: bool, guard: Guard) -> None:
        self._prefix = prefix
        self._figures = figures
        self._guard = guard
        self._pending: tuple[AnomalyReport, Tensor | None, Mapping[str, Any], int] | None = None
        self._drawn = False  # whether figures of what is pending were logged
        self._epochs = EpochPoints()

    def take(
        self, report: AnomalyReport, images: Tensor | None, told: Mapping[str, Any], epoch: int, step: int
    ) -> None:
        """Keep an analysis for `show`, with what a page is `told` of its samples, until the next."""
        outliers = None
        if self._figures and images is not None and len(images) == report.n_samples:
            # Signals are drawn as curves.
            shown = images if images.ndim > 3 else drawn(images, images).permute(0, 3, 1, 2)
            outliers = outlier_images(shown, report.outlier_scores, report.outlier_samples)
        self._pending, self._drawn = (report, outliers, told, step), False
        if report.pictures is not None:
            self._epochs.add(report.layers, epoch, step)

    def show(self, trainer: Any, history: list[dict[str, Any]], last: bool = False) -> None:
        """Log what is due, and after the `last` analysis what is not shown yet; call `remember_losses` first.

        The curves and the page of the last analysis are logged again, with the training loss of its epoch. One line
        says where the page lies.
        """
        due = not self._drawn and is_due(sum(entry["analysed"] for entry in history))
        if self._pending is None or not (last or due):
            return
        report, outliers, told, step = self._pending
        if self._figures and report.layers:
            figures: dict[str, Callable[[], Figure | None]] = {"curves": partial(curves_figure, history)}
            if not self._drawn:
                figures |= {name: partial(draw, report, outliers) for name, draw in FIGURES.items()}
            for name, figure in figures.items():
                log_drawn(trainer.loggers, f"{self._prefix}/{name}", figure, step, self._guard)
        self._drawn = True
        if last:
            self._pending = None
        if report.pictures is not None:
            title = f"Anomaly filters, step {step:,}"
            frames = self._epochs.before(report.layers, step)
            page = report.page_text(title, history=history, frames=frames, **told)
            for logger in trainer.loggers:
                with self._guard(f"log a page to {type(logger).__name__}"):
                    path = log_page(logger, f"{self._prefix}/browser", page, step)
                    if last and path:
                        rank_zero_info(f"The filters and images of this run, epoch by epoch: open {path}")


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
