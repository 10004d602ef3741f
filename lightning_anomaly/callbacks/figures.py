"""Which figures of a report go to a Trainer's loggers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_anomaly.loggers import log_figure, log_overlay_layout, loss_tags
from lightning_anomaly.plots import draw_outliers, filter_figure, outlier_images, verdict_map
from lightning_anomaly.report import AnomalyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_layout", "log_report", "pick_outliers"]


def pick_outliers(report: AnomalyReport, images: Tensor | None) -> Tensor | None:
    """The few images of a probe that the figure of the outliers shows.

    Args:
        report: The report.
        images: The probe's images `(N, C, H, W)`, None if there are none.

    Returns:
        What `log_report` takes; None if the images are not those of the report's samples.
    """
    if images is None or len(images) != report.n_samples:
        return None
    try:
        return outlier_images(report, images)
    except Exception as error:  # a picture is not worth a training run
        warnings.warn(f"The outliers' images could not be taken: {type(error).__name__}: {error}", stacklevel=2)
        return None


def log_report(loggers: list[Any], prefix: str, report: AnomalyReport, outliers: Tensor | None, step: int) -> None:
    """Log the figures of a report: the clearest anomaly filters, a map of all verdicts, and the outlier images.

    Args:
        loggers: The Trainer's loggers.
        prefix: What the figures' names begin with.
        report: The report.
        outliers: What `pick_outliers` gave.
        step: The step to log at.
    """
    if not loggers or not report.layers:
        return
    figures: dict[str, Callable[[], Figure | None]] = {
        "filters": lambda: filter_figure(report),
        "verdicts": lambda: verdict_map(report),
    }
    if outliers is not None:
        figures["outliers"] = lambda: draw_outliers(report, outliers)
    for name, draw in figures.items():
        try:
            figure = draw()
        except Exception as error:  # a picture is not worth a training run
            warnings.warn(f"The figure '{name}' could not be drawn: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if figure is not None:
            for logger in loggers:
                log_figure(logger, f"{prefix}/{name}", figure, step)


def log_layout(trainer: Any, prefix: str, tags: list[str] | None, last_chance: bool = False) -> bool:
    """Lay the losses and the anomaly count into one chart, once their names are known.

    Args:
        trainer: The Trainer.
        prefix: What the keys of the logged values begin with.
        tags: Tags of the losses; None finds them among the logged values.
        last_chance: Whether to take what there is. A training loss that is logged by epoch has no value yet in the
            first validation, and TensorBoard takes only one layout from a run.

    Returns:
        Whether that has happened.
    """
    losses = loss_tags(trainer.logged_metrics) if tags is None else tags
    waiting = len(losses) < 2 or (losses[0].endswith("_step") and trainer.current_epoch == 0)
    if tags is None and waiting and not last_chance:
        return False
    count = f"{prefix}/count"
    for logger in trainer.loggers:
        log_overlay_layout(logger, [*losses, count], prefix, apart=[count])
    return True
