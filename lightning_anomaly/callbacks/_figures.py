"""Figures and the filter browser: what goes to a Trainer's loggers, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_anomaly.callbacks._loggers import log_figure, log_overlay_layout, loss_tags
from lightning_anomaly.plots import FIGURES, comparison_figure, outlier_images
from lightning_anomaly.plots.comparisons import ComparisonFields
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.report.pictures import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from lightning_anomaly.browser import page_text
from lightning_anomaly.callbacks._loggers import log_page
from lightning_anomaly.report.pictures import Pictures

__all__ = [
    "BrowserSchedule",
    "FigureSchedule",
    "Guard",
    "analyses",
    "is_due",
    "log_comparisons",
    "log_report",
    "remember_losses",
]

Guard = Callable[[str], AbstractContextManager[None]]  # of a callback, see `GuardedHooks._guard`


class FigureSchedule:
    """Figures at the 1st, 2nd, 4th, 8th, ... analysis and after the last: few in a long training, close at its start.

    Which analysis is the last is known only afterwards: until the next one, the few images stay that its figures show.
    The layout of the charts is logged even if figures are not enabled.
    """

    def __init__(self, prefix: str, overlay_tags: list[str] | None, enabled: bool, guard: Guard) -> None:
        self._prefix = prefix
        self._overlay_tags = overlay_tags
        self._enabled = enabled
        self._guard = guard
        self.start()

    def start(self) -> None:
        """Begin a fit."""
        self._layout_done = False
        self._pending: tuple[int, Tensor | None] | None = None

    def lay_out(self, trainer: Any, last_chance: bool = False) -> None:
        """Lay losses and the numbers of anomaly and of isolated filters into one chart, once their names are known.

        Call it in all processes, in `on_validation_end` and `on_fit_end` alone: reading `trainer.logged_metrics` may
        reduce what was logged, which one process must not do by itself, nor all of them before Lightning does. A
        training loss that is logged by epoch has no value in the first validation, and TensorBoard takes one layout
        from a run; so the names have to be known, but for the `last_chance`.
        """
        if self._layout_done:
            return
        losses = loss_tags(trainer.logged_metrics) if self._overlay_tags is None else self._overlay_tags
        waiting = len(losses) < 2 or (losses[0].endswith("_step") and trainer.current_epoch == 0)
        if self._overlay_tags is None and waiting and not last_chance:
            return
        counts = [f"{self._prefix}/count", f"{self._prefix}/isolated"]
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                with self._guard(f"log a chart layout to {type(logger).__name__}"):
                    log_overlay_layout(logger, [*losses, *counts], self._prefix, apart=counts)
        self._layout_done = True

    def log(self, trainer: Any, report: AnomalyReport, images: Tensor | None, step: int, number: int) -> None:
        """Log the figures that are due after an analysis, the `number`th, of a probe with images `(N, C, H, W)`."""
        self._pending = (step, _pick_outliers(report, images)) if self._enabled else None
        if is_due(number):
            self.finish(trainer, report)

    def finish(self, trainer: Any, report: AnomalyReport) -> None:
        """Log the figures of the last analysis, if that has not happened."""
        if self._pending is not None:
            step, outliers = self._pending
            log_report(trainer.loggers, self._prefix, report, outliers, step, self._guard)
            self._pending = None


def analyses(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of analyses in a history, those before a resume included."""
    return sum(entry["analysed"] for entry in history)


def is_due(number: int) -> bool:
    """Whether a figure belongs to the 1st, 2nd, 4th, 8th, ... of something."""
    return number & (number - 1) == 0


def _pick_outliers(report: AnomalyReport, images: Tensor | None) -> Tensor | None:
    """The few images, or curves of signals, that the figure of the outliers shows; None if of other samples."""
    if images is None or len(images) != report.n_samples:
        return None
    if images.ndim == 3:
        images = drawn(images, images).permute(0, 3, 1, 2)
    return outlier_images(report, images)


def log_report(
    loggers: list[Any], prefix: str, report: AnomalyReport, outliers: Tensor | None, step: int, guard: Guard
) -> None:
    """Log the figures of a report, with what `_pick_outliers` gave."""
    if not loggers or not report.layers:
        return
    for name, draw in FIGURES.items():
        _log_drawn(loggers, prefix, name, partial(draw, report, outliers), step, guard)


def log_comparisons(
    loggers: list[Any],
    prefix: str,
    history: Sequence[ComparisonFields],
    significance: float,
    layer_significance: float,
    step: int,
    guard: Guard,
) -> None:
    """Log the figure of all comparisons so far, as `PREFIX/layers`; see `log_report` and `comparison_figure`."""
    if loggers:
        draw = partial(comparison_figure, history, significance, layer_significance)
        _log_drawn(loggers, prefix, "layers", draw, step, guard)


def _log_drawn(
    loggers: list[Any], prefix: str, name: str, draw: Callable[[], Figure | None], step: int, guard: Guard
) -> None:
    figure: Figure | None = None
    with guard(f"draw the figure '{name}'"):
        figure = draw()
    if figure is not None:
        for logger in loggers:
            with guard(f"log a figure to {type(logger).__name__}"):
                log_figure(logger, f"{prefix}/{name}", figure, step)


class BrowserSchedule:
    """The filter browser at the 1st, 2nd, 4th, 8th, ... analysis and after the last, beside the figures."""

    def __init__(self, prefix: str, guard: Guard) -> None:
        self._prefix = prefix
        self._guard = guard
        self.start()

    def start(self) -> None:
        """Begin a fit."""
        self._pending: tuple[AnomalyReport, Pictures, int] | None = None

    def take(self, report: AnomalyReport, pictures: Pictures | None, step: int) -> None:
        """Keep what the browser shows of an analysis until the next; None if it was not asked for."""
        if pictures is not None:
            self._pending = report, pictures, step

    def write(self, trainer: Any, history: list[dict[str, Any]], last: bool = False) -> None:
        """Log the page in process 0, if it is due or the last one was not."""
        if self._pending is None or not (last or is_due(analyses(history))):
            return
        report, pictures, step = self._pending
        self._pending = None
        page = page_text(report, pictures, title=f"Anomaly filters, step {step:,}", history=history)
        for logger in trainer.loggers:
            with self._guard(f"log a page to {type(logger).__name__}"):
                log_page(logger, f"{self._prefix}/browser", page, step)


def remember_losses(history: list[dict[str, Any]], trainer: Any, epoch_ended: bool = False) -> None:
    """Put losses into the entries that they belong to; call it in all processes, as `lay_out`.

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
