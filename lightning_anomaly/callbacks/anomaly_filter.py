"""The callback that finds anomaly filters at validations, and logs them."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from lightning_anomaly._internal.checks import check_bool, check_integer, check_names
from lightning_anomaly.callbacks._guard import OnError, guarded, guarded_until_validation_ends
from lightning_anomaly.callbacks._lightning import AnyCallback
from lightning_anomaly.callbacks._logging import log_report_figures
from lightning_anomaly.callbacks._losses import remember_logged
from lightning_anomaly.callbacks._probe import Probe
from lightning_anomaly.callbacks._run_loss import RunLoss
from lightning_anomaly.filters.analyze import KnownLayers
from lightning_anomaly.filters.anomaly_report import AnomalyReport
from lightning_anomaly.filters.fraction_rise import fraction_rise
from lightning_anomaly.filters.settings import AnalysisSettings, checked_settings
from lightning_anomaly.images.loaders import shuffles
from lightning_anomaly.network.layers import convolution_notes, select_layers

_NEUTRAL = {**AnomalyReport({}, 0).metrics(), "rise": 0.0, "seconds": 0.0}


class AnomalyFilterCallback(AnyCallback):
    """Find anomaly filters at validations and log how many there are.

    The maps are taken while the validation step itself runs: there is no second forward pass. Compiled layers run
    uncompiled meanwhile. The probe is the first samples of the first validation loader, so a data set that is sorted by
    class should be shuffled once.

    At every validation it logs `count`, `fraction`, `isolated`, `dead`, `sparsity`, `outlier_samples`, `rise` and
    `seconds` under `log_key_prefix`, and the count in each layer as `LOG_KEY_PREFIX_layers/NAME`: `docs/watch.md`.

    Args:
        layers: Names of the layers to analyze, as in `model.named_modules()`; None takes every convolution,
            transposed ones included.
        probe_size: Number of probe samples, over all processes; at least `settings.smallest_probe`.
        every_n_validations: Analyze at every n-th validation, and log the last values again at the others.
        log_key_prefix: Prefix of the logged keys; two callbacks need different ones.
        log_figures: Whether figures go to the loggers, at the 1st, 2nd, 4th, 8th, ... analysis and after the last.
        settings: How to analyze; None takes the defaults. In a configuration file, `settings: {rectify: false}`, or
            `settings: lightning_anomaly.AnalysisSettings.paper` for the literal reading of the source paper, with
            jsonargparse 4.42 or later.
        on_error: What to do when one of its hooks fails: "warn" once and go on, or "raise" the error.

    Attributes:
        report: The last `AnomalyReport`, None before the first validation. Its `save_html` shows every filter with the
            images of the probe; in a run of one process also their classes, and their files if the data set has
            `samples`. It is lost with strategies that end the processes, such as `ddp_spawn` and `ddp_notebook`.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics` (only what was measured),
            `analyzed` (False if the metrics are repeated), `clustered` (whether a filter could be clustered), and
            `logged` (what the module logged, with the losses). A resumed fit continues it.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is not allowed; names of layers are checked when the fit begins.

    Examples:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> images = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images[7] *= 5
        >>> model, loader = BoringModel(), torch.utils.data.DataLoader(images, batch_size=60)
        >>> model.layer = torch.nn.Conv2d(1, 2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.layer.weight)
        >>> callback = AnomalyFilterCallback(probe_size=120)
        >>> options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=callback, **options)
        >>> trainer.fit(model, loader, loader)
        >>> print(callback.report)  # doctest: +ELLIPSIS
        strangest samples:
          7, score ...
        2 filters isolate a sample; chance gives up to 1
        anomaly filters: 2, 100.0% of those with varying maps...
        layer  filters  anomaly  isolated  dead  sparsity  maps  anomaly filters (outlier samples)
        ------------------------------------------------------------------------------------------
        layer  2        2        2         0     0.00      8x8   0 (1), 1 (1)
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        probe_size: int = 512,
        every_n_validations: int = 1,
        log_key_prefix: str = "anomaly_filters",
        log_figures: bool = True,
        settings: AnalysisSettings | None = None,
        on_error: OnError = "warn",
    ) -> None:
        super().__init__(log_key_prefix, _NEUTRAL, on_error, in_progress_bar="count")
        self.settings = checked_settings(settings)
        self.layers = check_names("layers", layers, "layer names")
        self.probe_size = check_integer("probe_size", probe_size, self.settings.smallest_probe)
        self.every_n_validations = check_integer("every_n_validations", every_n_validations, 1)
        self.log_figures = check_bool("log_figures", log_figures)
        self._probe: Probe | None = None  # of the current validation, if it is analyzed
        self._reset()

    def _reset(self) -> None:
        """Drop everything that an earlier fit left."""
        self.report: AnomalyReport | None = None
        self.history: list[dict[str, Any]] = []
        self._known: KnownLayers = {}  # of the last analysis
        self._undrawn: int | None = None  # step of the last analysis, until its figures are logged
        self._guard.forget_warnings()

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {"history": [dict(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless the checkpoint is only validated or tested."""
        if self._fitting is not False:
            self._reset()
            self.history = [dict(entry) for entry in state_dict["history"]]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the configuration, and drop the state unless a fit goes on."""
        super().setup(trainer, pl_module, stage)
        RunLoss.of(trainer).ask(None)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the names of layers, which `setup` may have built, and drop the figures of an earlier fit."""
        select_layers(pl_module, self.layers)
        self._undrawn = None

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if there are no validations."""
        self._values.warn_without_validations(trainer, self._guard)

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Store the losses of the last epoch."""
        remember_logged(self.history, trainer, epoch_ended=True)

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the first training step after a validation."""
        RunLoss.of(trainer).watch("train", pl_module, batch)

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take what the training step has told."""
        RunLoss.of(trainer).take("train", trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin with the last values, and prepare the probe if this validation is analyzed."""
        self._remove_hooks()
        self._guard.failure = None  # of a validation that never ended
        if not trainer.sanity_checking:
            self._begin_validation(trainer, pl_module)

    @guarded_until_validation_ends
    def _begin_validation(self, trainer: Any, pl_module: Any) -> None:
        fitting = trainer.state.fn == "fit"
        past, layers = self.history if fitting else [], select_layers(pl_module, self.layers)
        self._values.begin_validation(past[-1]["metrics"] if past else {}, layers, chosen=self.layers is not None)
        if len(past) % self.every_n_validations:
            return
        if fitting:
            self._guard.begin_analysis(self._values.measured.get("seconds", 0.0))
            if shuffles(trainer.val_dataloaders):
                self._guard.warn(
                    "shuffled",
                    "The validation loader shuffles, so each validation has another probe and the anomaly counts are "
                    "not comparable: do not shuffle it.",
                )
        self._probe = Probe(trainer, pl_module, layers, self.probe_size, self.settings, RunLoss.of(trainer))

    @guarded_until_validation_ends
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Hook the layers, until the probe is full, and watch the loss of the first step."""
        if batch_idx == dataloader_idx == 0:
            RunLoss.of(trainer).watch("val", pl_module, batch)
        if self._probe is not None and dataloader_idx == 0:
            self._probe.before_probe_batch(batch)

    @guarded_until_validation_ends
    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any, **options: Any) -> None:
        """Remove the hooks."""
        RunLoss.of(trainer).take("val", trainer)
        if self._probe is not None:
            self._probe.capture.remove()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Analyze the probe, and log."""
        if trainer.sanity_checking:
            return
        report = None
        with self._guard("analyze the filters", self._values.without_measurement(trainer)):
            self._guard.raise_kept_failure()
            if self._probe is not None:
                report = self._analyze_probe(trainer, self._probe)
        if trainer.state.fn == "fit":
            self._record_history(trainer, report)
        with self._guard("log"):
            self._values.log_values(trainer, pl_module)
        self._remove_hooks()

    def _analyze_probe(self, trainer: Any, probe: Probe) -> AnomalyReport | None:
        """Analyze the probe and return the report; None if an earlier measurement stands. A collective call."""
        started = perf_counter()
        report = probe.analyze_probe(convolution_notes(probe.module, self.layers), self._known)
        seconds = perf_counter() - started
        notes = dict(report.notes)
        if trainer.fast_dev_run:
            notes.pop("few samples", None)
        elif report.n_samples < self.probe_size and report.layers:
            small = f"The probe has {report.n_samples} samples, fewer than `probe_size = {self.probe_size}`."
            notes = {"small probe": small, **notes}
        self._guard.warn_of(notes, "" if report.measured else self._values.without_measurement(trainer))
        if not report.measured and self._values.measured:
            return None
        self.report = report
        if report.measured:
            self._values.measured |= {**report.metrics(), "seconds": seconds}
        return report

    @guarded
    def _record_history(self, trainer: Any, report: AnomalyReport | None) -> None:
        """Add this validation to the history with its `rise`."""
        values = self._values.measured
        clustered = report is not None and report.measured and report.n_clustered > 0
        if clustered:  # otherwise 0 would be a level from which the fraction rises, and repeated values a lasting rise
            past = [entry["metrics"]["fraction"] for entry in self.history if entry["clustered"]]
            values["rise"] = fraction_rise([*past, values["fraction"]])
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metrics": dict(values),
                "analyzed": report is not None,
                "clustered": clustered,
            }
        )
        if report is not None:
            # The step at which Lightning logs this validation.
            self._undrawn = int(trainer.fit_loop.epoch_loop._batches_that_stepped)

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures of the 1st, 2nd, 4th, 8th, ... analysis."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            remember_logged(self.history, trainer)
            analyses = sum(entry["analyzed"] for entry in self.history)
            if analyses.bit_count() == 1:  # 1, 2, 4, 8, ...
                self._draw_last_figures(trainer)

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures of the last analysis, with its losses."""
        if self.report is not None:
            remember_logged(self.history, trainer, epoch_ended=True)
            self._draw_last_figures(trainer)

    @guarded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove what has watched a step; if the user interrupts the fit, log the last figures too."""
        super().on_exception(trainer, pl_module, exception)
        self._remove_hooks()
        if isinstance(exception, KeyboardInterrupt):
            self._draw_last_figures(trainer)  # waits for no other process

    def _draw_last_figures(self, trainer: Any) -> None:
        """Log the figures of the last analysis once: TensorBoard shows only the first figure of a step."""
        step, self._undrawn = self._undrawn, None
        if self.log_figures and trainer.is_global_zero and step is not None and self.report is not None:
            log_report_figures(self.report, self.history, trainer.loggers, self.log_key_prefix, step, self._guard)

    def _remove_hooks(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.capture.remove()
