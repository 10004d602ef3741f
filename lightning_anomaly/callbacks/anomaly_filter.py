"""The callback that finds anomaly filters at validations, and logs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_anomaly._internal.checks import check_bool, check_integer, check_names
from lightning_anomaly.callbacks._base import guarded, logged_step
from lightning_anomaly.callbacks._figures import FigureSchedule, remember_losses
from lightning_anomaly.callbacks._probe import ValidationWatch, class_notes, same_pixels
from lightning_anomaly.callbacks._watching import WatchingCallback, until_validation_end
from lightning_anomaly.filters.layer_report import LayerReport
from lightning_anomaly.filters.report import AnomalyReport
from lightning_anomaly.filters.settings import AnalysisSettings, checked_settings
from lightning_anomaly.images.loaders import shuffles
from lightning_anomaly.images.source import drawn_columns
from lightning_anomaly.network.layers import select_layers, unseen_layers
from lightning_anomaly.two_sample.stopping import rise


class AnomalyFilterCallback(WatchingCallback):
    """Find anomaly filters at validations and log how many there are.

    The maps are taken while the validation step itself runs: there is no second forward pass. Compiled layers run
    uncompiled meanwhile. The probe is the first samples of the first validation loader, so a data set that is sorted by
    class should be shuffled once.

    Logs finite floats under `log_key_prefix` at every validation, which `docs/watch.md` explains: `count` of anomaly
    filters and their `fraction`, filters that are `isolated` or `dead`, `sparsity`, `outlier_samples`, `rise` and
    `seconds`. The count in each layer is logged as `LOG_KEY_PREFIX_layers/NAME` if `layers` is given or there are at
    most twelve layers. A value that was never measured is logged, as 0, only if a callback or a scheduler monitors it.

    Args:
        layers: Names of the layers to analyze, as in `model.named_modules()`; None takes every convolution,
            transposed ones included.
        probe_size: Number of probe samples, over all processes; at least `settings.smallest_probe`.
        every_n_validations: Analyze at every n-th validation, and log the last values again at the others.
        log_key_prefix: Prefix of the logged keys; two callbacks need different ones.
        log_figures: Whether figures go to the loggers, at the 1st, 2nd, 4th, 8th, ... analysis and after the last.
        settings: How to analyze; None takes the defaults. In a configuration file, `settings: {rectify: false}`, or
            `settings: lightning_anomaly.AnalysisSettings.paper` for the literal reading of the source paper.
        browser: Whether the filter browser goes to the loggers together with the figures: one HTML file in which a
            point shows its image and its map, see `AnomalyReport.save_html` and `docs/loggers.md`. In a run of one
            process it also names classes and files, if the data set has `targets` and `samples`.

    Attributes:
        report: The last `AnomalyReport`, None before the first validation; only process 0 has its points and labels.
            It is lost with strategies that end the processes, such as `ddp_spawn` and `ddp_notebook`.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics` (only what was measured),
            `analysed` (False if the metrics are repeated), `live` (whether a filter could be clustered), and `losses`
            if any were logged. A resumed fit continues it.

    Raises:
        ValueError: If an argument is not allowed; names of layers are checked when the fit begins.

    Examples:
        >>> callback = AnomalyFilterCallback(probe_size=256)
        >>> callback.report is None, callback.history
        (True, [])
    """

    _task = "analyze the filters"
    _neutral = {**AnomalyReport({}, 0).metrics(), "rise": 0.0, "seconds": 0.0}
    _found_keys = ("live",)
    _prog_bar = "count"

    def __init__(
        self,
        layers: list[str] | None = None,
        probe_size: int = 512,
        every_n_validations: int = 1,
        log_key_prefix: str = "anomaly_filters",
        log_figures: bool = True,
        settings: AnalysisSettings | None = None,
        browser: bool = False,
    ) -> None:
        self.settings = checked_settings(settings)
        super().__init__(log_key_prefix, every_n_validations)
        self.layers = check_names("layers", layers, "layer names")
        self.probe_size = check_integer("probe_size", probe_size, self.settings.smallest_probe)
        self.log_figures = check_bool("log_figures", log_figures)
        self.browser = check_bool("browser", browser)
        self._watch: ValidationWatch | None = None
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.report: AnomalyReport | None = None
        self.history: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        """Drop the figures and images of an earlier fit."""
        self._figures = FigureSchedule(self.log_key_prefix, self.log_figures, self._guard)
        self._pixels: Tensor | None = None  # of the last probe of this fit
        self._previous: Mapping[str, LayerReport] | None = None  # results of the last analysis of this fit

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {"history": [dict(entry) for entry in self.history]}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(entry) for entry in state_dict["history"]]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the names of layers, which `setup` may have built, and drop the figures of an earlier fit."""
        super().on_fit_start(trainer, pl_module)
        select_layers(pl_module, self.layers)
        self._begin()

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Store the losses of the last epoch."""
        remember_losses(self.history, trainer, epoch_ended=True)

    @until_validation_end
    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        layers = select_layers(pl_module, self.layers)
        self._choose_keys(layers)
        if not self._due:
            return
        fitting = trainer.state.fn == "fit"
        if fitting and shuffles(trainer.val_dataloaders):
            self._warn_once(
                "shuffled",
                "The validation loader shuffles, so each validation has another probe and the anomaly counts are not "
                "comparable: do not shuffle it.",
            )
        self._watch = ValidationWatch(
            trainer,
            pl_module,
            layers=layers,
            probe_size=self.probe_size,
            settings=self.settings,
            notes=unseen_layers(pl_module, self.layers),
            keep_images=fitting and (self.log_figures or self.browser),
            previous=self._previous if fitting else None,
            kept=self.report.pictures.maps if fitting and self.report and self.report.pictures else {},
        )

    @until_validation_end
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Hook the layers."""
        if self._watch is not None and dataloader_idx == 0:
            self._watch.before_batch(batch)

    @until_validation_end
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remove the hooks."""
        if self._watch is not None:
            self._watch.capture.remove()

    def _find(self, trainer: Any) -> tuple[AnomalyReport, Tensor | None] | None:
        started = time.perf_counter()
        fitting = trainer.state.fn == "fit"
        pictures = fitting and bool(trainer.loggers) and self.browser
        watch = self._watch
        assert watch is not None
        self._spent += watch.capture.seconds
        from numba.core import event  # late: importing the package does not import numba

        compiled = [0.0]
        with event.install_timer("numba:compile", compiled.append):
            report, images = watch.analyze(pictures)
        notes = dict(report.notes)
        if trainer.fast_dev_run:
            notes.pop("few samples", None)
        elif report.n_samples < self.probe_size and report.layers:
            small = f"The probe has {report.n_samples} samples, fewer than `probe_size = {self.probe_size}`."
            notes = {"small probe": small, **notes}
        self._warn_of(trainer, notes, report.measured)
        if not report.measured and self._has_found(trainer):
            return None
        self.report = report
        if fitting:
            self._previous = watch.previous
            before, self._pixels = self._pixels, watch.pixels
            if before is not None and not same_pixels(before, self._pixels) and "shuffled" not in self._warned:
                self._warn_once(
                    "changed",
                    "The images of the probe changed from one validation to the next, so the anomaly counts are not "
                    "comparable: give the same images each time, without random augmentation.",
                )
        if report.measured:
            self._values |= {**report.metrics(), "seconds": time.perf_counter() - started - sum(compiled)}
        return report, images

    @guarded
    def _remember(self, trainer: Any, result: tuple[AnomalyReport, Tensor | None] | None) -> None:
        """Add this validation to the history with its `rise`, and schedule its figures and page."""
        report, images = (None, None) if result is None else result
        live = report is not None and report.measured and report.n_live > 0
        if live:  # otherwise 0 would be a level from which the fraction rises, and repeated values a sustained rise
            past = [entry["metrics"]["fraction"] for entry in self.history if entry["live"]]
            self._values["rise"] = rise([*past, self._values["fraction"]])
        place = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.history.append({**place, "metrics": dict(self._values), "analysed": report is not None, "live": live})
        if report is not None and self._watch is not None and trainer.is_global_zero:
            loaders = trainer.val_dataloaders
            columns = {} if shuffles(loaders) else drawn_columns(loaders)
            self._warn_of(trainer, class_notes(columns.get("labels", []), report.n_samples), True)
            if trainer.world_size > 1:  # a user's sampler may give processes other samples
                columns = {}
            texts = {name: column[: report.n_samples] for name, column in columns.items()}
            self._figures.take(report, images, texts, logged_step(trainer))

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log figures and page if they are due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            remember_losses(self.history, trainer)
            with self._timed():
                self._figures.show(trainer, self.history)

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures and the page of the last analysis, with its losses."""
        self._free()
        if self.report is not None:
            remember_losses(self.history, trainer, epoch_ended=True)
            self._draw_last(trainer)

    def _draw_last(self, trainer: Any) -> None:
        self._figures.show(trainer, self.history, last=True)

    def _free(self) -> None:
        self._previous = None

    def _release(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.capture.remove()
