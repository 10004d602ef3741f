"""The callback that watches: analyzes the filters at the end of a validation and logs what it found."""

from __future__ import annotations

import time
from typing import Any, Literal

from torch import Tensor

from lightning_anomaly.callbacks._base import (
    LoggingCallback,
    all_validate,
    describe_dead_monitors,
    guarded,
    logged_step,
    until_validation_end,
)
from lightning_anomaly.callbacks._figures import FigureSchedule, remember_losses
from lightning_anomaly.callbacks._history import has_found, last_values, remember
from lightning_anomaly.callbacks._probe import (
    CHANGED,
    ValidationWatch,
    analyze_probe,
    is_empty_result,
    same_pixels,
    shortcomings,
)
from lightning_anomaly.capture.images import shuffles
from lightning_anomaly.capture.layers import select_layers, unseen_layers
from lightning_anomaly.checks import check_bool, check_integer, check_names, check_one_of
from lightning_anomaly.notes import merge_notes
from lightning_anomaly.report import AnomalyReport
from lightning_anomaly.settings import AnalysisSettings, checked_settings
from lightning_anomaly.shared_analysis import AnalysisResult, OutputSpec

__all__ = ["AnomalyFilterCallback", "find_watcher"]

_NOTHING = "nothing is watched and the logged zeros stand for nothing"
_PREFIX = "anomaly_filters"
_MOST_LAYERS = 12  # that are logged without being asked for


class _Integer(int):
    """A number that a progress bar shows without decimals, whatever it asks for."""

    def __format__(self, spec: str) -> str:
        return str(int(self))


class AnomalyFilterCallback(LoggingCallback):
    """Find anomaly filters at the end of validations and log how many there are.

    The maps are taken while the validation step itself runs, so with `probe="val"` there is no second forward pass, and
    the training is not touched. Compiled layers run as they were written meanwhile, whose outputs may differ by
    rounding.

    Logged at every validation, as finite floats under `log_key_prefix`: `count` (anomaly filters), `fraction` (of the
    filters whose maps vary), `isolated` (filters that set one or a few samples apart from all others, by a rule with
    hardly any false alarm), `dead` (filters with the same map for every sample), `sparsity` (fraction of map values at
    most 0), `outlier_samples` (probe samples that are outliers of some filter), `outlier_score` (the largest of a probe
    sample), `rise` (how far the fraction has risen and stayed above an earlier level, 0 to 1; 0 before ten analyses and
    outside a fit) and `seconds` (taken by the analysis). The count in each layer is logged as
    `LOG_KEY_PREFIX_layers/NAME`, if `layers` names the layers or there are at most twelve.

    Args:
        layers: Names of the layers to analyze, as in `model.named_modules()`; None takes every convolution,
            transposed ones included.
        probe: `"val"` takes the first samples that the first validation loader yields, so a data set that is sorted by
            class should be shuffled once; `"train"` takes a fixed random sample of the training set and runs the
            module's `forward` on it in evaluation mode. If the images of a probe change from one validation to the
            next, there is a warning.
        probe_size: Number of probe samples, over all processes; at least `settings.smallest_probe`.
        every_n_validations: Analyze at every n-th validation, and log the last values again at the others.
        log_key_prefix: What the keys of the logged values begin with; two callbacks need different ones.
        signal_layers: Names of the analyzed layers whose anomaly fraction gives `rise`; None takes all of them.
        log_figures: Whether figures go to the loggers, at the 1st, 2nd, 4th, 8th, ... analysis and after the last.
        overlay_tags: Tags for the chart that lays losses and the fraction over each other in TensorBoard; None finds
            the training and the validation loss among what was logged.
        on_error: What an exception in this callback does: `"warn"` logs the last values, `"raise"` stops the
            training.
        settings: How to analyze; None takes the defaults. In a configuration file, `settings: {rectify: false}`, or
            `settings: lightning_anomaly.AnalysisSettings.paper` for the literal reading of the source paper.
        browser: Whether the filter browser goes to the loggers when figures do: one HTML file in which a point shows
            its image and its map, see `AnomalyReport.save_html`. It is `anomaly_filters/browser.html` beside the files
            of TensorBoard or CSVLogger; W&B, MLflow and Comet store it. With one process a sample has its class, and
            what is predicted if that is another, where batches have integer targets and a linear layer gives the
            logits, and its file where the data set has `samples`, as torchvision's `ImageFolder`.

    Attributes:
        report: The last `AnomalyReport`, None before the first validation, with points and labels only in process 0.
            Nothing is left of it where the strategy ends the processes, as `ddp_spawn` and `ddp_notebook` do.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics`, `analysed` (or the last
            values again), `live` (whether a filter of the signal layers could be clustered), `signal` (the fraction in
            them), with `browser` also `losses`, and in the last one the `anomaly_filters` of each layer. It outlives a
            resume.

    Raises:
        ValueError: If an argument is not allowed; names of layers are checked when the fit begins.

    Examples:
        >>> callback = AnomalyFilterCallback(probe_size=256)
        >>> callback.report is None, callback.history
        (True, [])
    """

    _state_name = "AnomalyFilterCallback"

    def __init__(
        self,
        layers: list[str] | None = None,
        probe: Literal["val", "train"] = "val",
        probe_size: int = 512,
        every_n_validations: int = 1,
        log_key_prefix: str = _PREFIX,
        signal_layers: list[str] | None = None,
        log_figures: bool = True,
        overlay_tags: list[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        settings: AnalysisSettings | None = None,
        browser: bool = False,
    ) -> None:
        self.settings = checked_settings(settings)
        super().__init__(log_key_prefix)
        self.layers = check_names("layers", layers, "layer names")
        self.probe = check_one_of("probe", probe, ("val", "train"))
        self.probe_size = check_integer("probe_size", probe_size, self.settings.smallest_probe)
        self.every_n_validations = check_integer("every_n_validations", every_n_validations, 1)
        self.signal_layers = check_names("signal_layers", signal_layers, "layer names")
        self.overlay_tags = check_names("overlay_tags", overlay_tags, "tags")
        self.log_figures = check_bool("log_figures", log_figures)
        self.on_error = check_one_of("on_error", on_error, ("warn", "raise"))
        self.browser = check_bool("browser", browser)
        self._watch: ValidationWatch | None = None
        self._values: dict[str, float] = {}
        self._due = False  # whether the validation that runs is analyzed
        self._forget()

    def _forget(self) -> None:
        self.report: AnomalyReport | None = None
        self.history: list[dict[str, Any]] = []
        self._warned.clear()
        self._figures = FigureSchedule(self.log_key_prefix, self.overlay_tags, self.log_figures, self._guard)
        self._pixels: Tensor | None = None  # of the last probe of this fit

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain values."""
        return {"history": [dict(entry) for entry in self.history]}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of release 0.1 do not say what was live.
        self.history = [{"live": entry["analysed"], **entry} for entry in state_dict["history"]]

    def _check_layers(self, pl_module: Any) -> None:
        self._watched(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check names of layers, and begin the figures of a fit."""
        super().on_fit_start(trainer, pl_module)
        self._figures.start()
        self._pixels = None

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the losses of the epoch before."""
        if self.browser and not trainer.barebones:
            remember_losses(self.history, trainer, epoch_ended=True)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare to take maps, if this validation is to be analyzed."""
        self._release()
        self._due = False
        if trainer.sanity_checking or trainer.barebones:
            return
        # What a fit found is no value of another validation.
        history = self.history if trainer.state.fn == "fit" else []
        self._values = last_values(history)
        if not all_validate(trainer):
            self._warn_of_no_validation(trainer)
            return
        self._due = len(history) % self.every_n_validations == 0
        self._watch_layers(trainer, pl_module, history)

    @until_validation_end
    def _watch_layers(self, trainer: Any, pl_module: Any, history: list[dict[str, Any]]) -> None:
        layers = self._watched(pl_module)
        self._values = last_values(history, layers)
        if not self._due:
            return
        fitting = trainer.state.fn == "fit"
        if self.probe == "val" and fitting and shuffles(trainer.val_dataloaders):
            self._warn_once(
                "shuffled",
                "The validation loader shuffles, so every validation has another probe and the anomaly counts are not "
                'comparable. Let it keep the order, or use `probe = "train"`, which takes a fixed sample.',
            )
        self._watch = ValidationWatch(
            trainer,
            pl_module,
            layers=layers,
            probe=self.probe,
            probe_size=self.probe_size,
            settings=self.settings,
            notes=unseen_layers(pl_module, self.layers),
            keep_images=fitting and (self.log_figures or self.browser),
        )

    @until_validation_end
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Hook the layers for the validation step to come."""
        if self._watch is not None and dataloader_idx == 0:
            self._watch.before_batch(batch)

    @until_validation_end
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take the hooks off again."""
        if self._watch is not None:
            self._watch.after_batch()
            if dataloader_idx == 0:
                self._watch.run_training_probe()

    @guarded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind; if it is the user who ends the fit, figures and page of the last analysis are made."""
        self._release()
        if isinstance(exception, KeyboardInterrupt):
            self._figures.show(trainer, self.history, last=True)  # waits for no other process

    @guarded
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave no hook and no map behind."""
        super().teardown(trainer, pl_module, stage)
        self._release()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Analyze what was taken, and log."""
        if trainer.sanity_checking or trainer.barebones:
            return
        found: AnalysisResult | None = None
        self._end_probe()
        with self._guard("analyze the filters", self._consequence(trainer)):
            if self._due:
                found = self._analyze(trainer)
            self._raise_failure()
        if trainer.state.fn == "fit":
            self._remember(trainer, found)
        layers = {key.removeprefix("layer/"): value for key, value in self._values.items() if key.startswith("layer/")}
        self._log(trainer, pl_module, {key: self._values[key] for key in self._values if not key.startswith("layer/")})
        if self.layers is not None or len(layers) <= _MOST_LAYERS:
            self._log(trainer, pl_module, layers, suffix="_layers")
        self._release()

    @until_validation_end
    def _end_probe(self) -> None:
        if self._watch is not None:
            self._watch.run_training_probe()  # in a process without any validation batch

    @guarded
    def _remember(self, trainer: Any, found: AnalysisResult | None) -> None:
        """Add this validation to the history, and its figures and page to those that are due."""
        remember(self.history, trainer, self._values, None if found is None else found.report, self.signal_layers)
        if found is not None and trainer.is_global_zero:
            told = {} if self._watch is None else self._watch.describe_samples(found.report.n_samples)
            self._figures.take(found, told, trainer.current_epoch, logged_step(trainer))

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Lay the curves over each other, in a chart, and log figures and page that are due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.barebones:
            self._figures.lay_out(trainer)
            if self.report is not None:  # what is logged would be shown as a float, under its whole key
                short = "anomalies" if self.log_key_prefix == _PREFIX else self.log_key_prefix
                trainer.progress_bar_metrics[short] = _Integer(self.report.count)
            if self.browser:
                remember_losses(self.history, trainer)
            self._figures.show(trainer, self.history)

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the chart and the figures of the last analysis, if that has not happened."""
        if self.report is not None:
            self._figures.lay_out(trainer, last_chance=True)
            if self.browser:
                remember_losses(self.history, trainer, epoch_ended=True)
            self._figures.show(trainer, self.history, last=True)

    def _watched(self, pl_module: Any) -> dict[str, Any]:
        watched = select_layers(pl_module, self.layers)
        if unseen := [name for name in self.signal_layers or [] if name not in watched]:
            raise ValueError(
                f"Parameter `signal_layers` should name layers that are analyzed, {list(watched)}. Found {unseen}: add "
                "them to `layers`."
            )
        return watched

    def _analyze(self, trainer: Any) -> AnalysisResult | None:
        """Set the report and the metrics, if there is anything to set them to."""
        started = time.perf_counter()
        fitting = trainer.state.fn == "fit"
        shows = fitting and bool(trainer.loggers)
        spec = OutputSpec(shows and (self.log_figures or self.browser), shows and self.browser)
        failure, self._failure = self._failure, None
        found = analyze_probe(self._watch, self.settings, spec, failure, self._guard)
        report = found.report
        notes = shortcomings(report, 0 if trainer.fast_dev_run else self.probe_size)
        if is_empty_result(report):
            told = " ".join(merge_notes(notes).values())
            if fitting and has_found(self.history):  # a count of 0 would look like health
                self._warn_once("nothing now", f"{told} So AnomalyFilterCallback logs its last values.")
                return None
            if notes:
                notes = {"nothing": f"{told} So {_NOTHING}.{describe_dead_monitors(trainer, self.log_key_prefix)}"}
        self.report = report
        if self._watch is not None:
            notes |= self._watch.class_notes(report.n_samples)
        self._warn_each_once(notes)
        if fitting:
            self._compare_images()
        self._values |= {**report.metrics(), "seconds": time.perf_counter() - started}
        return found

    def _consequence(self, trainer: Any) -> str:
        """What a failing analysis leaves to be logged."""
        if trainer.state.fn == "fit" and has_found(self.history):
            return " and logs its last values"
        return f", so {_NOTHING}.{describe_dead_monitors(trainer, self.log_key_prefix)}"

    def _compare_images(self) -> None:
        """Warn if the probe has changed."""
        now = self._watch.pixels if self._watch is not None else None
        if now is None or not len(now):
            return
        before, self._pixels = self._pixels, now
        if before is not None and not same_pixels(before, now) and "shuffled" not in self._warned:
            self._warn_once("changed", CHANGED[self.probe])

    def _release(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.after_batch()


def find_watcher(trainer: Any, prefix: str | None, asking: str) -> AnomalyFilterCallback:
    """Find the AnomalyFilterCallback with this `log_key_prefix` in a Trainer, or the first; `asking` is for the error.

    Raises:
        ValueError: If there is none.
    """
    watchers = [callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback)]
    for watcher in watchers:
        if prefix in (None, watcher.log_key_prefix):
            return watcher
    wanted = "" if prefix is None else f" with `log_key_prefix = {prefix!r}`"
    raise ValueError(
        f"{asking} an AnomalyFilterCallback{wanted} among the Trainer's callbacks. "
        f"Found {[watcher.log_key_prefix for watcher in watchers] or 'none'}."
    )
