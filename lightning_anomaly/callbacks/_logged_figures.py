"""Draw figures and log them to any logger.

A logger is recognized by the methods of its type, because `lightning` and `pytorch_lightning` have two sets of classes.
Lightning's dummy loggers answer to every name, but their types do not. Call this on global rank 0 only, and guarded: a
logger may fail.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import Any

from lightning_anomaly.callbacks._guard import Guard
from lightning_anomaly.callbacks._losses import loss_tags
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.curves_figure import curves_figure
from lightning_anomaly.filters.filter_figures import filter_figure, verdict_map
from lightning_anomaly.pages.outlier_figure import outlier_figure


def log_report_figures(
    report: AnomalyReport, history: list[dict[str, Any]], loggers: list[Any], prefix: str, step: int, guard: Guard
) -> None:
    """Log the figures of a report; call `remember_logged` first."""
    if not (loggers and report.layers):
        return
    for name, figure in _draw_figures(report, history):
        for logger in loggers if figure is not None else ():
            with guard(f"log a figure to {type(logger).__name__}"):
                log_figure(logger, f"{prefix}/{name}", figure, step)


def _draw_figures(report: AnomalyReport, history: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Draw one figure at a time, so that only one is in memory."""
    losses = loss_tags(name for entry in history for name in entry.get("logged", {}))
    yield "curves", curves_figure(history, losses)
    yield "verdicts", verdict_map(report.layers, report.measured)
    yield "filters", filter_figure(report.layers)
    if report.images is not None:
        yield "outliers", outlier_figure(report.images, report.outlier_scores, report.votes)


def log_figure(logger: Any, name: str, figure: Any, step: int) -> None:
    """Log a figure, with CSVLogger as a PNG file; slashes in the name make groups or folders."""
    experiment: Any = getattr(logger, "experiment", None)
    file = re.sub(r"[^\w./=-]", "_", f"{name}/step={step:06d}.png")  # a path that every file system allows
    if _can(logger, "log_image"):  # W&B
        # The logger turns the step into a metric, "trainer/global_step". W&B counts its own step, and would discard
        # values that are logged with a smaller one than before.
        from PIL import Image

        logger.log_image(key=name, images=[Image.open(io.BytesIO(figure._repr_png_()))], step=step)
    elif _can(experiment, "add_figure"):  # TensorBoard
        prefix = getattr(logger, "_prefix", "")  # of the logger, which precedes the names of metrics too
        if prefix and isinstance(prefix, str):
            name = f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{name}"
        experiment.add_figure(name, figure, global_step=step, close=False)
    elif _can(experiment, "log_figure") and hasattr(type(logger), "run_id"):  # MLflow, whose client serves many runs
        experiment.log_figure(logger.run_id, figure, file)
    elif _can(experiment, "log_figure"):  # Comet
        experiment.log_figure(figure_name=name, figure=figure, step=step)
    elif isinstance(table := getattr(experiment, "metrics_file_path", None), str):  # CSVLogger
        from lightning.fabric.utilities.cloud_io import get_filesystem  # a log folder may be a bucket

        path = os.path.join(os.path.dirname(table), file)
        system = get_filesystem(path)
        system.makedirs(os.path.dirname(path), exist_ok=True)
        with system.open(path, "wb") as picture:
            picture.write(figure._repr_png_())


def _can(thing: Any, method: str) -> bool:
    return callable(getattr(type(thing), method, None))
