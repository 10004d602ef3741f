"""Draw figures for a Trainer's loggers, and remember the losses that they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_anomaly.callbacks._guard import Guard
from lightning_anomaly.callbacks._loggers import log_figure
from lightning_anomaly.callbacks._losses import loss_tags
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.curves_figure import curves_figure
from lightning_anomaly.filters.filter_figures import filter_figure, verdict_map
from lightning_anomaly.pages.outlier_figure import outlier_figure


def log_report_figures(
    report: AnomalyReport, history: list[dict[str, Any]], loggers: list[Any], prefix: str, step: int, guard: Guard
) -> None:
    """Log the figures of a report; call `remember_losses` first."""
    if not (loggers and report.layers):
        return
    for name, figure in _draw_figures(report, history):
        for logger in loggers if figure is not None else ():
            with guard(f"log a figure to {type(logger).__name__}"):
                log_figure(logger, f"{prefix}/{name}", figure, step)


def _draw_figures(report: AnomalyReport, history: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Draw one figure at a time, so that only one is in memory."""
    losses = loss_tags(name for entry in history for name in entry.get("losses", {}))
    yield "curves", curves_figure(history, losses)
    yield "verdicts", verdict_map(report.layers, report.measured)
    yield "filters", filter_figure(report.layers)
    if report.images is not None:
        yield "outliers", outlier_figure(report.images, report.outlier_scores, report.votes)


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
