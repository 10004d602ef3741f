"""Send figures and the filter browser to a Trainer's loggers, and decide when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_anomaly.callbacks._guard import Guard
from lightning_anomaly.callbacks._loggers import log_figure, log_page
from lightning_anomaly.callbacks._loss_names import loss_tags
from lightning_anomaly.filters.curves_figure import curves_figure
from lightning_anomaly.filters.figures import filter_figure, verdict_map
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.pages.outlier_figure import outlier_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureSchedule:
    """Log the figures and the filter browser of a fit after the 1st, 2nd, 4th, 8th, ... analysis and after the last.

    Only the end of the fit shows which analysis was the last, so each is kept until it is logged or the next one comes.
    """

    def __init__(self, prefix: str, figures: bool, guard: Guard) -> None:
        self._prefix = prefix
        self._figures = figures
        self._guard = guard
        self._pending: tuple[AnomalyReport, Tensor | None, Mapping[str, Any], int] | None = None
        self._pages: list[str] = []  # files of the last page

    def take(self, report: AnomalyReport, images: Tensor | None, sample_texts: Mapping[str, Any], step: int) -> None:
        """Keep an analysis for `show` until the next; `sample_texts` are its samples' `labels` and `names`."""
        self._pending = report, images, sample_texts, step

    def show(self, trainer: Any, history: list[dict[str, Any]], last: bool = False) -> None:
        """Log the pending analysis if it is due or the `last`; call `remember_losses` first.

        At the end, one line gives the path of each page.
        """
        if self._pending is not None and (last or is_due(sum(entry["analyzed"] for entry in history))):
            pending, self._pending = self._pending, None  # a logger shows the first figure of a step, if it gets two
            self._log(trainer, history, *pending)
        if last:
            for path in self._pages:
                rank_zero_info(f"The filters and images of this run: open {path}")

    def _log(
        self,
        trainer: Any,
        history: list[dict[str, Any]],
        report: AnomalyReport,
        images: Tensor | None,
        sample_texts: Mapping[str, Any],
        step: int,
    ) -> None:
        if self._figures and report.layers:
            losses = loss_tags(name for entry in history for name in entry.get("losses", {}))
            figures: dict[str, Callable[[], Figure | None]] = {
                "curves": partial(curves_figure, history, losses),
                "verdicts": partial(verdict_map, report.layers, report.measured),
                "filters": partial(filter_figure, report.layers),
            }
            if images is not None and len(images) == report.n_samples:  # not of patches or frames
                figures["outliers"] = partial(outlier_figure, images, report.outlier_scores, report.votes)
            for name, figure in figures.items():
                log_drawn(trainer.loggers, f"{self._prefix}/{name}", figure, step, self._guard)
        if report.pictures is not None:
            page, paths = report.page_text(f"Anomaly filters, step {step:,}", **sample_texts), []
            for logger in trainer.loggers:
                with self._guard(f"log a page to {type(logger).__name__}"):
                    paths.append(log_page(logger, f"{self._prefix}/browser", page, step))
            self._pages = list(filter(None, paths))


def is_due(number: int) -> bool:
    """Whether a number is 1, 2, 4, 8, ..."""
    return number & (number - 1) == 0


def log_drawn(loggers: list[Any], name: str, draw: Callable[[], Figure | None], step: int, guard: Guard) -> None:
    """Draw a figure and log it to each logger, unless there is nothing to show."""
    if not loggers:
        return
    figure = draw()
    if figure is not None:
        for logger in loggers:
            with guard(f"log a figure to {type(logger).__name__}"):
                log_figure(logger, name, figure, step)


def remember_losses(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Add the logged losses to their entries of the history; a collective call, as it reads metrics.

    The losses of a validation and of a training step are known when the validation ends. The mean training loss of an
    epoch is known later: when the next epoch starts, or the fit ends.
    """
    results = trainer.fit_loop.epoch_loop._results.values()
    means = {result.meta.name for result in results if result.meta.on_epoch}
    metrics = trainer.logged_metrics
    for kind, name in loss_tags(metrics).items():
        spellings = {name, name.removesuffix("_epoch"), name.removesuffix("_step")}
        late = kind == "training" and not means.isdisjoint(spellings)
        owners = [entry for entry in history if not late or entry["epoch"] == trainer.current_epoch - 1]
        if late == epoch_ended and owners:
            owners[-1].setdefault("losses", {})[name] = float(metrics[name])
