"""The callback that compares how sure a network is of training and of validation images."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly._internal.checks import check_integer, check_text
from lightning_anomaly.callbacks._compared_images import ComparedImages, read_compared_images
from lightning_anomaly.callbacks._guard import OnError, guarded, guarded_until_validation_ends
from lightning_anomaly.callbacks._lightning import AnyCallback
from lightning_anomaly.callbacks._logging import without_module_logging
from lightning_anomaly.callbacks._losses import remember_logged
from lightning_anomaly.callbacks._run_loss import RunLoss, part_to_call
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.images.loaders import loader_of
from lightning_anomaly.memorization.comparison import check_groups, compare_outputs
from lightning_anomaly.memorization.label_doubts import KnownLabels, MeanMargins
from lightning_anomaly.memorization.memorization_report import SHOWN, MemorizationReport
from lightning_anomaly.memorization.stop_rule import MIN_ERRORS, ErrorRise
from lightning_anomaly.network.layers import find_logits_call

# Without type arguments: with them LightningCLI rejects data sets of a parametrized type.
Source = Tensor | Dataset | DataLoader | None  # type: ignore[type-arg]
_NEUTRAL = {"auc": 0.5, "error_ratio": 1.0, "p_value": 1.0}  # of a network that treats both kinds alike
_NEUTRAL |= dict.fromkeys(["gap", "rise", "labels_in_doubt", "seconds"], 0.0)
_PREPARED = (
    "a validation step prepares images before it calls the module, and images are compared as they come from the "
    "loader: give prepared images as `train_inputs` and `val_inputs`, or prepare them in `forward` or in the transform "
    "of the data set"
)
_ADVICE = " Give images of one size, in a tensor or a data set with a length, as `train_inputs` and `val_inputs`."


class MemorizationCallback(AnyCallback):
    """Compare training with validation images at every validation, by the output of the network.

    An overfitted network is more confident on training images. Add a `MemorizationEarlyStopping` to stop the run by
    `rise`. If each training image has one class, the report also has `label_doubts`: the network learns wrong labels
    last, so it tells which of the compared training images are mislabeled.

    What is a logit, a class and a label is what the run's own loss is given. Where no loss tells, nothing is compared,
    and one line says why: `docs/stop.md`.

    Logs finite floats under `log_key_prefix` at every validation: `auc`, `gap`, `p_value`, `error_ratio` and `rise` of
    the output; `labels_in_doubt`, a share of the compared training images; and `seconds`. Nothing is logged before the
    first measurement, except a key that a callback or scheduler monitors.

    By default it takes a fixed random sample of the Trainer's images that the run sees. If both data sets have the same
    type and a `transform`, training images are read with that of validation. Every process runs the module on all
    images after its first validation batch, in evaluation mode and the Trainer's precision. Outside of a fit nothing is
    compared: see `two_sample_test`.

    Args:
        train_inputs: Training images as `forward` gets them in validation: a tensor `(n, ...)`, or a Dataset or
            DataLoader to sample from; None takes the Trainer's.
        val_inputs: Validation images, in the same forms.
        log_key_prefix: Prefix of the logged keys; two callbacks need different ones.
        batch_size: Largest number of images to run at a time.
        sample_size: Number of images of each kind to sample; a tensor is taken whole.
        every_n_validations: Compare at every n-th validation, and log the last values again at the others.
        max_memory_mb: Largest memory (MB) for sampled images, which are kept until the fit ends. If they need more,
            they are read again at each comparison.
        logits_from: Name of a method or submodule that takes images and returns logits, such as `"classify"`;
            "forward" is the module itself. None takes what the loss is given.
        on_error: What to do when one of its hooks fails: "warn" once and go on, or "raise" the error.

    Attributes:
        report: The last `MemorizationReport`, None before the first validation.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics` (only what was measured),
            `compares_output` (whether the output could be compared), `few_errors` (whether too few are expected for a
            rise) and `logged` (what the module logged, with the losses). A resumed fit continues it.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is not allowed; `logits_from` is checked when the fit begins.
    """

    def __init__(
        self,
        train_inputs: Source = None,
        val_inputs: Source = None,
        log_key_prefix: str = "memorization",
        batch_size: int = 64,
        sample_size: int = 1024,
        every_n_validations: int = 1,
        max_memory_mb: int = 256,
        logits_from: str | None = None,
        on_error: OnError = "warn",
    ) -> None:
        super().__init__(log_key_prefix, _NEUTRAL, on_error, in_progress_bar="rise")
        self.train_inputs, self.val_inputs = train_inputs, val_inputs
        tensors = []
        for name, source in (("train_inputs", train_inputs), ("val_inputs", val_inputs)):
            if isinstance(source, Tensor):
                tensors.append(ImageSource(source, name))
            elif source is not None:
                loader_of(source, name)
        if len(tensors) == 2:
            check_groups(*tensors)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.sample_size = check_integer("sample_size", sample_size, 1)
        self.every_n_validations = check_integer("every_n_validations", every_n_validations, 1)
        self.max_memory_mb = check_integer("max_memory_mb", max_memory_mb, 0)
        self.logits_from = None if logits_from is None else check_text("logits_from", logits_from)
        self._images: ComparedImages | None = None  # of the current fit
        self._due = False  # whether this validation is compared
        self._compared: tuple[MemorizationReport, float] | None = None  # of this validation, and its seconds
        self._reset()

    def _reset(self) -> None:
        """Drop everything that an earlier fit left."""
        self.report: MemorizationReport | None = None
        self.history: list[dict[str, Any]] = []
        self._begin_measuring()
        self._guard.forget_warnings()

    def _begin_measuring(self) -> None:
        self._error_rise, self._margins = ErrorRise(), MeanMargins()
        self._identity: str | None = None  # of the images that were measured
        self._labels: list[str | None] = []  # of the training images among them
        self._known: KnownLabels | None = None  # what was known of these at the last comparison of this fit

    def state_dict(self) -> dict[str, Any]:
        """Return the history and what was measured, the rise and the mean margins, and of which images and labels."""
        return {
            "history": list(self.history),
            "rise": self._error_rise.state_dict(),
            "margins": self._margins.state_dict(),
            "images": self._identity,
            "labels": list(self._labels),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless the checkpoint is only validated or tested."""
        if self._fitting is not False:
            self._reset()
            self.history = list(state_dict["history"])
            self._error_rise.load_state_dict(state_dict["rise"])
            self._margins.load_state_dict(state_dict["margins"])
            self._identity, self._labels = state_dict["images"], list(state_dict.get("labels", ()))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check `logits_from`, which `setup` may have built, and drop what is known of an earlier fit."""
        find_logits_call(pl_module, self.logits_from)
        RunLoss.of(trainer).ask(self.logits_from, self.batch_size)
        self._images = None

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if there are no validations."""
        self._values.warn_without_validations(trainer, self._guard)

    @guarded
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Store the training loss of the last epoch."""
        remember_logged(self.history, trainer, epoch_ended=True)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin with the last values."""
        self._compared = None
        self._guard.failure = None  # of a validation that never ended
        self._due = False
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._begin_validation(trainer, pl_module)

    @guarded_until_validation_ends
    def _begin_validation(self, trainer: Any, pl_module: Any) -> None:
        self._values.begin_validation(self.history[-1]["metrics"] if self.history else {})
        self._due = len(self.history) % self.every_n_validations == 0
        if self._due:
            self._guard.begin_analysis(self._values.measured.get("seconds", 0.0))

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Watch the first training step after a validation."""
        RunLoss.of(trainer).watch("train", pl_module, batch)

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take what the training step has told."""
        RunLoss.of(trainer).take("train", trainer)

    @guarded_until_validation_ends
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first step of each validation."""
        if trainer.state.fn == "fit" and batch_idx == dataloader_idx == 0:
            RunLoss.of(trainer).watch("val", pl_module, batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare after the first step: averaged weights are in place then, and the buffers of process 0."""
        self._compare_once(trainer, pl_module, batch)

    @guarded_until_validation_ends
    def _compare_once(self, trainer: Any, pl_module: Any, batch: Any = None) -> None:
        """Run both kinds of images, unless this validation has compared them already or is not compared."""
        RunLoss.of(trainer).take("val", trainer)
        if not self._due or self._compared is not None:
            return
        start, loss = perf_counter(), RunLoss.of(trainer).input(self.logits_from)
        problem, scores = loss.problem, loss.scores
        prepared = None if loss.call is None else loss.call.prepared
        if prepared is not None and (self.train_inputs is None or self.val_inputs is None):
            problem = _PREPARED
        if problem or scores is None:
            report = MemorizationReport(0, 0, notes={"output": f"The output is not compared: {problem}."})
        else:
            call = part_to_call(pl_module, loss.call, self.logits_from)
            with torch.inference_mode(False), torch.no_grad(), without_module_logging(pl_module):
                images = self._take_images(trainer, pl_module, batch if prepared is None else prepared)
                labels = self._take_labels(images.labels(RunLoss.of(trainer), self.logits_from))
                with trainer.strategy.precision_plugin.forward_context():
                    report = compare_outputs(pl_module, images.train, images.val, call, scores, labels=labels)
            if loss.note:
                report = replace(report, notes={**report.notes, "loss": loss.note})
        self._compared = report, perf_counter() - start

    def _take_images(self, trainer: Any, pl_module: Any, batch: Any) -> ComparedImages:
        """Return the images of the fit, read if this is the first comparison of these data sets."""
        given = {"train_inputs": self.train_inputs, "val_inputs": self.val_inputs}
        if self._images is not None and self._images.are_of(trainer, given):
            return self._images
        limits = self.batch_size, self.sample_size, self.max_memory_mb * 10**6
        images = self._images = read_compared_images(trainer, pl_module, given, *limits, batch)
        self._guard.warn_of(images.notes)
        if self._identity not in (None, images.identity):
            self._begin_measuring()
        self._identity = images.identity
        return images

    def _take_labels(self, labels: KnownLabels) -> KnownLabels:
        """Return the labels of this comparison, which may be others than at the last one."""
        pairs = zip(self._labels, labels.train, strict=False)
        if any(None not in pair and pair[0] != pair[1] for pair in pairs):
            if self._known is None:  # a resumed fit has other images
                self._error_rise, self._margins = ErrorRise(), MeanMargins()
            else:
                self._margins.begin_labels()
        self._known, self._labels = labels, list(labels.train)
        return labels

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare if this process had no batch, add the comparison to the history, and log."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._compare_once(trainer, pl_module)
        report = None
        known = RunLoss.of(trainer).input(self.logits_from).scores is not None
        advice = _ADVICE if self._images is None and known else ""
        with self._guard("compare", self._values.without_measurement(trainer, advice)):
            self._guard.raise_kept_failure()
            if self._compared is not None:
                report = self._take_comparison(trainer, *self._compared)
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metrics": dict(self._values.measured),
                "compares_output": report is not None and report.compares_output,
                "few_errors": self._error_rise.too_few_expected_errors,
            }
        )
        with self._guard("log"):
            self._values.log_values(trainer, pl_module)
        self._compared = None

    def _take_comparison(self, trainer: Any, report: MemorizationReport, seconds: float) -> MemorizationReport | None:
        """Take a comparison as the last report and its values; None if it found nothing and an earlier one stands."""
        measured, values, images = report.compares_output, self._values.measured, self._images
        self._guard.warn_of(report.notes, "" if measured else self._values.without_measurement(trainer))
        if not measured and values:
            return None
        if measured and images is not None:
            if report.label_margins is not None and self._known is not None:
                self._margins.add(report.label_margins, trainer.current_epoch)
                report = replace(report, samples=self._margins.doubts(self._known))
            values |= {**report.metrics(), "seconds": seconds}
            errors = images.train.with_gaps(report.train_errors), images.val.with_gaps(report.val_errors)
            values["rise"] = self._error_rise.add(*errors)
            if self._error_rise.too_few_expected_errors:
                self._guard.warn(
                    "few errors",
                    f"On the {report.n_train} training and {report.n_val} validation images the network expects fewer "
                    f"than {MIN_ERRORS} errors, so a few images decide, and `rise` stays 0: give more images.",
                )
        self.report = report
        return report

    @guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Store what the module logged."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            remember_logged(self.history, trainer)

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Free the images but for some small copies."""
        remember_logged(self.history, trainer, epoch_ended=True)
        if self.report is not None and self._images is not None:
            shown = [*self.report.label_doubts][:SHOWN]
            self.report = replace(self.report, pictures=self._images.pictures(shown))
        self._images = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Free the images, and what has watched a step."""
        super().on_exception(trainer, pl_module, exception)
        self._images = None
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        self._compared = None
