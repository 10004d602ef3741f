"""The callback that compares training with validation images, by the output and by the filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly._internal.checks import check_bool, check_fraction, check_integer, check_names, check_text
from lightning_anomaly.callbacks._base import guarded, logged_step
from lightning_anomaly.callbacks._figures import is_due, log_drawn
from lightning_anomaly.callbacks._probe import transferred_images, unlogged
from lightning_anomaly.callbacks._watching import WatchingCallback, until_validation_end
from lightning_anomaly.images.loaders import first_loader
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.network.layers import find_call, select_layers
from lightning_anomaly.pages.comparison_figure import comparison_figure
from lightning_anomaly.two_sample.comparable_images import (
    WatchedCalls,
    describe_doubts,
    is_augmented,
    read_once,
    trained_on,
)
from lightning_anomaly.two_sample.comparison import LayerTest, check_groups, compare_groups
from lightning_anomaly.two_sample.rank_test import MIN_P_VALUE
from lightning_anomaly.two_sample.report import TwoSampleReport
from lightning_anomaly.two_sample.rise import MIN_ERRORS, ErrorRise

# Without type arguments: with them LightningCLI rejects data sets of a parametrized type.
Source = Tensor | Dataset | DataLoader | None  # type: ignore[type-arg]


class TwoSampleCallback(WatchingCallback):
    """Compare training with validation images at every validation, by the output and by the filters.

    `two_sample_test` explains the comparison. It needs no labels. Add a `TwoSampleEarlyStopping` to stop the run by
    `confidence_rise`.

    Logs finite floats under `log_key_prefix` at every validation, which `docs/stop.md` explains: `confidence_auc`,
    `confidence_gap`, `confidence_p_value`, `confidence_error_ratio` and `confidence_rise` of the output; `count`,
    `fraction` and `p_value` of the filters; and `seconds`. The fraction in each layer is logged as
    `LOG_KEY_PREFIX_layers/NAME` if `layers` is given or there are at most twelve convolutions. A value that was never
    measured is logged only if a callback or a scheduler monitors it, as of a network that treats both kinds alike.

    By default it takes a fixed random sample of the Trainer's images. If both data sets are of one class with a
    `transform`, such as torchvision's, training images are read with that of the validation set; otherwise as the
    training loader yields them, augmented or not. In `trainer.validate` nothing is compared without `train_inputs`.

    Training images that a run with `overfit_batches`, or with `limit_train_batches` and a loader that does not shuffle,
    never sees are left out. Every process runs the module on all images after its first validation batch, in
    evaluation mode and the Trainer's precision.

    Args:
        train_inputs: Training images as `forward` gets them in validation: a tensor `(n, ...)`, or a Dataset or
            DataLoader to sample from; None takes the Trainer's.
        val_inputs: Validation images, in the same forms.
        layers: Names of the layers to compare, as in `model.named_modules()`; None takes every convolution.
        significance: Largest p-value with which a filter counts.
        log_key_prefix: Prefix of the logged keys; two callbacks need different ones.
        log_figures: Whether a figure of `confidence_auc` and the fraction in every layer goes to the loggers, at the
            1st, 2nd, 4th, 8th, ... validation and after the last.
        batch_size: Largest number of images to run at a time.
        sample_size: Number of images of each kind to sample; a tensor is taken whole.
        every_n_validations: Compare at every n-th validation, and log the last values again at the others.
        max_memory_mb: Largest memory (MiB) for sampled images, which are kept until the fit ends. If they need more,
            they are read again at each comparison.
        logits: Name of a method or submodule that takes images and returns logits, such as `"classify"` or
            `"networks.student"`; None calls the module itself.

    Attributes:
        report: The last `TwoSampleReport`, None before the first validation.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics` (only what was measured),
            `compares_output` (whether the output could be compared) and `share_p_values` (of each layer with live
            filters, see `LayerComparison`). A resumed fit continues it.

    Raises:
        ValueError: If an argument is not allowed; names of layers and `logits` are checked when the fit begins.

    Examples:
        >>> TwoSampleCallback(sample_size=512).report is None
        True
    """

    _task = "compare"
    _neutral = {
        "count": 0.0,
        "fraction": 0.0,
        "p_value": 1.0,
        "confidence_auc": 0.5,
        "confidence_gap": 0.0,
        "confidence_error_ratio": 1.0,
        "confidence_p_value": 1.0,
        "confidence_rise": 0.0,
        "seconds": 0.0,
    }
    _advice = (
        " Name a method or submodule that takes one tensor of images and returns logits as `logits`, or give such "
        "images as `train_inputs` and `val_inputs`."
    )
    _found_keys = ("compares_output", "share_p_values")
    _prog_bar = "fraction"

    def __init__(
        self,
        train_inputs: Source = None,
        val_inputs: Source = None,
        layers: list[str] | None = None,
        significance: float = 0.01,
        log_key_prefix: str = "two_sample",
        log_figures: bool = True,
        batch_size: int = 64,
        sample_size: int = 1024,
        every_n_validations: int = 1,
        max_memory_mb: int = 256,
        logits: str | None = None,
    ) -> None:
        inputs = {"train_inputs": train_inputs, "val_inputs": val_inputs}
        for name, source in inputs.items():
            if source is not None and not isinstance(source, (Tensor, Dataset, DataLoader)):
                raise ValueError(
                    f"Parameter `{name}` should be a tensor (N, ...), a Dataset, a DataLoader or None. Found "
                    f"{type(source).__name__}."
                )
        tensors = [ImageSource(source, name) for name, source in inputs.items() if isinstance(source, Tensor)]
        if len(tensors) == 2:
            check_groups(*tensors)
        super().__init__(log_key_prefix, every_n_validations)
        self.train_inputs = train_inputs
        self.val_inputs = val_inputs
        self.layers = check_names("layers", layers, "layer names")
        self.significance = check_fraction("significance", significance, zero=False)
        self.log_figures = check_bool("log_figures", log_figures)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.sample_size = check_integer("sample_size", sample_size, 1)
        self.max_memory_mb = check_integer("max_memory_mb", max_memory_mb, 0)
        self.logits = None if logits is None else check_text("logits", logits)
        self._images: dict[str, ImageSource] | None = None  # of this fit
        self._calls = WatchedCalls()  # of the first validation step
        self._tests: dict[bytes, LayerTest] = {}  # of this fit's last comparison
        self._fresh: TwoSampleReport | None = None  # of the current validation
        self._seconds = 0.0
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.report: TwoSampleReport | None = None
        self.history: list[dict[str, Any]] = []
        self._rise = ErrorRise()
        self._undrawn: int | None = None  # step of the last validation, until a figure shows it

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the levels of the error ratio."""
        return {"history": list(self.history), "rise": self._rise.state_dict()}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self._rise.load_state_dict(state_dict["rise"])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the names of layers and `logits`, which `setup` may have built, and drop images of an earlier fit."""
        super().on_fit_start(trainer, pl_module)
        select_layers(pl_module, self.layers)
        find_call(pl_module, self.logits)
        self._undrawn = None
        self._free()

    def _free(self) -> None:
        self._images, self._tests = None, {}

    def _release(self) -> None:
        self._calls.close()
        self._fresh = None

    @until_validation_end
    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        self._choose_keys(select_layers(pl_module, self.layers))
        if self.train_inputs is None and trainer.train_dataloader is None:  # outside of a fit
            self._due, self._values = False, {}
            rank_zero_info(
                "TwoSampleCallback compares nothing: this Trainer has no training images; give `train_inputs`."
            )

    @until_validation_end
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch what the first step calls the module with."""
        if self._due and self._images is None and batch_idx == dataloader_idx == 0:
            called = find_call(pl_module, self.logits)
            hookable = isinstance(called, nn.Module) and not isinstance(called, torch.jit.ScriptModule)
            self._calls.watch(called if hookable else pl_module, batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Run the images after the first step: averaged weights are in place then, and the buffers of process 0."""
        self._calls.close()
        if self._due:
            with self._timed():
                self._finish(trainer, pl_module, batch)

    @until_validation_end
    def _finish(self, trainer: Any, pl_module: Any, batch: Any = None) -> None:
        if self._fresh is not None:
            return
        start = perf_counter()
        with torch.inference_mode(False), torch.no_grad(), unlogged(pl_module):
            images = self._images or self._read_images(trainer, pl_module, batch)
            known, call = None, find_call(pl_module, self.logits)
            if trainer.state.fn == "fit":
                self._images, known = images, self._tests
            with trainer.strategy.precision_plugin.forward_context():
                train, val = images.values()
                self._fresh = compare_groups(pl_module, train, val, self.layers, self.significance, known, call)
        self._seconds = perf_counter() - start

    def _read_images(self, trainer: Any, pl_module: Any, batch: Any) -> dict[str, ImageSource]:
        """Read the images once, warn of what may be wrong with them, and keep them if they fit into memory."""
        inputs = {"train_inputs": self.train_inputs, "val_inputs": self.val_inputs}
        sources = self._open_sources(trainer, pl_module, inputs)
        images, seen = read_once(sources, self.max_memory_mb * 2**20)
        from_user = [name for name, source in inputs.items() if source is not None]
        prepared = self._calls.prepared
        doubts = describe_doubts(from_user, seen, batch if prepared is None else prepared)
        if prepared is not None and len(from_user) < len(inputs):
            doubts["prepared"] = (
                "A validation step prepares images before it calls the module, and here they are compared as they come "
                "from the loader: give prepared images as `train_inputs` and `val_inputs`, or prepare them in "
                "`forward` or in the transform of the data set."
            )
        if self.train_inputs is None and is_augmented(sources["train_inputs"]):
            doubts["augmented"] = (
                "The training images are augmented anew each time, which hides the gap: give images without "
                "augmentation as `train_inputs`."
            )
        for key, doubt in {**sources["train_inputs"].notes(), **sources["val_inputs"].notes(), **doubts}.items():
            self._warn_once(key, doubt)
        return images

    def _open_sources(self, trainer: Any, pl_module: Any, inputs: Mapping[str, Source]) -> dict[str, ImageSource]:
        """Open the training and the validation images: the `inputs`, or those the run sees, without augmentation."""
        loaders = {"train_inputs": trainer.train_dataloader, "val_inputs": trainer.val_dataloaders}
        chosen = {name: first_loader(loaders[name]) if source is None else source for name, source in inputs.items()}
        if inputs["train_inputs"] is None and isinstance(chosen["train_inputs"], DataLoader):
            batches = trainer.num_training_batches
            chosen["train_inputs"] = trained_on(chosen["train_inputs"], chosen["val_inputs"], batches)
        precision, convert = trainer.strategy.precision_plugin, transferred_images(trainer, pl_module)
        return {
            name: ImageSource(precision.convert_input(source), name, self.batch_size)
            if isinstance(source, Tensor)
            else ImageSource(source, name, self.batch_size, sample=self.sample_size, convert=convert)
            for name, source in chosen.items()
        }

    def _find(self, trainer: Any) -> TwoSampleReport | None:
        report = self._fresh
        assert report is not None
        output, filters = report.compares_output, report.compares_filters
        found = output or filters
        self._warn_of(trainer, report.notes, found)
        if not found and self._has_found(trainer):
            return None
        self.report = report
        if output and trainer.state.fn == "fit":
            self._values["confidence_rise"] = self._rise.add(report.train_errors, report.val_errors)
            if self._rise.too_few_expected_errors:
                self._warn_once(
                    "few errors",
                    f"On the {report.n_train} training and {report.n_val} validation images the network expects fewer "
                    f"than {MIN_ERRORS} errors, so a few images decide, and `confidence_rise` stays 0: give more "
                    "images.",
                )
        names = [name for name in self._neutral if name not in ("confidence_rise", "seconds")]
        names = [name for name in names if (output if name.startswith("confidence") else filters)]
        self._values |= {name: float(getattr(report, name)) for name in names}
        self._values |= {f"layer/{name}": share for name, share in report.shares.items() if not math.isnan(share)}
        if found:
            self._values["seconds"] = self._seconds
        return report

    @guarded
    def _remember(self, trainer: Any, report: TwoSampleReport | None) -> None:
        layers = {} if report is None else report.layers
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metrics": dict(self._values),
                "compares_output": report is not None and report.compares_output,
                "share_p_values": {name: layer.share_p_value for name, layer in layers.items() if layer.live.any()},
            }
        )
        if self._due:
            self._undrawn = logged_step(trainer)
            if is_due(-(-len(self.history) // self.every_n_validations)):
                self._draw_last(trainer)

    def _draw_last(self, trainer: Any) -> None:
        if self.log_figures and trainer.is_global_zero and self._undrawn is not None:
            draw = partial(comparison_figure, self.history, max(self.significance, MIN_P_VALUE))
            log_drawn(trainer.loggers, f"{self.log_key_prefix}/layers", draw, self._undrawn, self._guard)
        self._undrawn = None
