"""Log values under the keys of a callback, and figures to any logger."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_anomaly._internal.checks import check_text
from lightning_anomaly._internal.processes import gather_results
from lightning_anomaly.callbacks._guard import Guard
from lightning_anomaly.callbacks._losses import loss_tags
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.filter_figures import curves_figure, filter_figure, verdict_map
from lightning_anomaly.pages.figures import outlier_figure

_MOST_LAYERS = 12  # logged one by one, unless the user names layers


class LoggedValues:
    """What the validations of a fit have measured, as `{name: value}`; a value of a layer is named `layer/NAME`.

    A missing key crashes what monitors it, and a placeholder looks like health. So a value that nobody has measured is
    logged only under a key that a callback or a learning rate scheduler of this Trainer monitors: the neutral value.
    """

    def __init__(self, prefix: str, neutral: Mapping[str, float], in_progress_bar: str) -> None:
        self.prefix = check_text("log_key_prefix", prefix)
        self.measured: dict[str, float] = {}
        self._neutral = dict(neutral)
        self._in_progress_bar = in_progress_bar
        self._layers: list[str] = []
        self._log_layers = False

    def begin_validation(self, last: Mapping[str, float], layers: Iterable[str] = (), *, chosen: bool = False) -> None:
        """Begin with the `last` values, but for those of layers that the module no longer has."""
        self._layers = list(layers)
        self._log_layers = chosen or len(self._layers) <= _MOST_LAYERS
        kept = self._neutral.keys() | {f"layer/{name}" for name in self._layers}
        self.measured = {name: value for name, value in last.items() if name in kept}

    def log_values(self, trainer: Any, pl_module: Any) -> None:
        """Log what all processes have measured, and the monitored keys; a collective call."""
        common = set.intersection(*gather_results(lambda: set(self.measured)))
        monitored = self.monitored_keys(trainer)
        neutral = self._neutral | {f"layer/{name}": 0.0 for name in self._layers}
        values = {name: value for name, value in neutral.items() if self._log_key(name) in monitored}
        values |= {name: value for name, value in self.measured.items() if name in common}
        for name, value in values.items():
            if self._log_layers or not name.startswith("layer/"):
                # The maximum of equal numbers is exact, their mean is rounded.
                pl_module.log(self._log_key(name), value, on_step=False, on_epoch=True, batch_size=1,
                              prog_bar=name == self._in_progress_bar, sync_dist=True, reduce_fx="max")  # fmt: skip

    def monitored_keys(self, trainer: Any) -> set[str]:
        """Return the keys of this prefix that a callback or a scheduler of a fit monitors."""
        readers = (*trainer.callbacks, *trainer.lr_scheduler_configs) if trainer.state.fn == "fit" else ()
        monitors = [getattr(reader, "monitor", None) for reader in readers]
        prefixes = f"{self.prefix}/", f"{self.prefix}_layers/"
        return {key for key in monitors if isinstance(key, str) and key.startswith(prefixes)}

    def without_measurement(self, trainer: Any, advice: str = "") -> str:
        """Say what is logged if a validation measures nothing; the text begins with a space."""
        if self.measured:
            return " The last values are logged again."
        dead = [f"'{key}'" for key in sorted(self.monitored_keys(trainer))]
        constant = f" Whatever monitors {', '.join(dead)} will only see a constant." if dead else ""
        return f" Nothing is measured.{advice}{constant}"

    def warn_without_validations(self, trainer: Any, guard: Guard) -> None:
        """Warn if a fit has no validations."""
        if not trainer.enable_validation:
            self.measured = {}
            guard.warn(
                "no validation",
                "This Trainer has no validations (no validation loader, no `validation_step`, or `limit_val_batches = "
                f"0`).{self.without_measurement(trainer)}",
            )

    def _log_key(self, name: str) -> str:
        layer = name.removeprefix("layer/")
        return f"{self.prefix}/{name}" if layer == name else f"{self.prefix}_layers/{layer}"


@contextmanager
def without_module_logging(pl_module: Any) -> Iterator[None]:
    """Ignore what the module logs meanwhile, in its `forward` for example: these are not values of the validation."""
    before = {name: value for name, value in vars(pl_module).items() if name == "log"}  # set by a user
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(pl_module)["log"]
        vars(pl_module).update(before)


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
    """Log a figure, with CSVLogger as a PNG file, on global rank 0 and guarded; slashes in the name make groups.

    A logger is recognized by the methods of its type, as there are two packages' classes, and dummy loggers answer to
    every name.
    """
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
