"""The callback that compares: logs whether the output, and which filters, tell training from validation images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.callbacks._base import guarded, logged_step
from lightning_anomaly.callbacks._figures import is_due, log_drawn
from lightning_anomaly.callbacks._probe import transferred_images, unlogged
from lightning_anomaly.callbacks._watching import WatchingCallback, until_validation_end
from lightning_anomaly.capture.layers import linear_layers, select_layers
from lightning_anomaly.checks import check_bool, check_fraction, check_integer, check_names
from lightning_anomaly.images.loaders import first_loader
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.plots import comparison_figure
from lightning_anomaly.two_sample.comparable_images import (
    describe_doubts,
    is_augmented,
    read_once,
    without_augmentation,
)
from lightning_anomaly.two_sample.comparison import check_groups, compare_groups
from lightning_anomaly.two_sample.rank_test import MIN_P_VALUE
from lightning_anomaly.two_sample.report import TwoSampleReport
from lightning_anomaly.two_sample.rise import MIN_ERRORS, ErrorRise

__all__ = ["TwoSampleCallback"]

# Without type arguments, as the command line takes none for a data set of a parametrized type.
Source = Tensor | Dataset | DataLoader | None  # type: ignore[type-arg]


class TwoSampleCallback(WatchingCallback):
    """Log at every validation whether the output, and which filters, tell training images from validation images.

    See `two_sample_test` for what that says, and why the training images should be given without augmentation. No label
    is needed. A `TwoSampleEarlyStopping` beside it stops by `confidence_rise`.

    Logs finite floats under `log_key_prefix` at every validation, which `docs/stop.md` explains: `confidence_auc`,
    `confidence_gap`, `confidence_p_value`, `confidence_error_ratio` and `confidence_rise` of the output; `count`,
    `fraction` and `p_value` of the filters; `seconds`; and the fraction in each layer, also of the units of linear
    ones, as `LOG_KEY_PREFIX_layers/NAME`, if `layers` names the layers or there are at most twelve convolutions.

    Without arguments it takes a fixed random sample of the Trainer's own training and validation images. Where the two
    data sets have a `transform`, as torchvision's have, training images are read with that of the validation set; else
    as the training loader yields them, augmentation included. In a `trainer.validate` there are no training images:
    without `train_inputs` nothing is compared nor logged then.

    Every process runs the module's `forward` on all of the images, `batch_size` at a time, in evaluation mode and the
    Trainer's precision. It draws no global random number, and leaves flags, buffers, gradients and hooks as they were;
    hooks of a user that a `forward` calls see these images too.

    Args:
        train_inputs: Training images as `forward` gets them in validation: a Dataset or a DataLoader, of which a random
            sample is taken, or a tensor `(n, ...)`; None takes the Trainer's. A resumed fit needs the same ones.
        val_inputs: Validation images, likewise.
        layers: Names of the layers to compare, as in `model.named_modules()`; None takes every convolution. The units
            of other linear layers are compared too, for `LOG_KEY_PREFIX_layers/NAME` alone.
        significance: The p-value up to which a filter counts.
        log_key_prefix: What the keys of the logged values begin with; two callbacks need different ones.
        log_figures: Whether a figure of `confidence_auc` and the fraction in every layer goes to the loggers, at the
            1st, 2nd, 4th, 8th, ... validation and after the last.
        batch_size: Largest number of images that run at a time; give fewer where a model of volumes needs too much
            memory.
        sample_size: Number of images of each kind, where no tensor is given.
        every_n_validations: Compare at every n-th validation, and log the last values again at the others.
        max_memory_mb: Most memory (MiB) for images that are kept until the fit ends, where no tensor is given. If they
            need more, they are read again at each comparison.

    Attributes:
        report: The last `TwoSampleReport`, None before the first validation.
        history: One plain dict for every validation of a fit: `epoch`, `step`, `metrics`, `compares_output` (whether
            the output could be compared) and `share_p_values` (of each layer with filters that could be judged, how
            often random divisions find as much there). It outlives a resume.

    Raises:
        ValueError: If an argument is not allowed; names of layers are checked when the fit begins.

    Examples:
        >>> TwoSampleCallback(sample_size=512).report is None
        True
    """

    _task = "compare"
    # What is logged besides the layers, and what it is where nothing was compared.
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
    _advice = " Give `train_inputs` and `val_inputs` as the module's `forward` takes them, which has to be one tensor."
    _found = ("compares_output", "share_p_values")
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
    ) -> None:
        given = {"train_inputs": train_inputs, "val_inputs": val_inputs}
        for name, source in given.items():
            if source is not None and not isinstance(source, (Tensor, Dataset, DataLoader)):
                raise ValueError(
                    f"Parameter `{name}` should be a tensor (N, ...), a Dataset, a DataLoader or None. Found "
                    f"{type(source).__name__}."
                )
        tensors = [ImageSource(source, name) for name, source in given.items() if isinstance(source, Tensor)]
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
        self._images: dict[str, ImageSource] | None = None  # of this fit
        self._fresh: TwoSampleReport | None = None  # of the validation that runs
        self._seconds = 0.0
        self._units: list[str] = []  # linear layers, whose units are compared if they have any
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.report: TwoSampleReport | None = None
        self.history: list[dict[str, Any]] = []
        self._rise = ErrorRise()
        self._undrawn: int | None = None  # the step of the last validation, if no figure has it

    def state_dict(self) -> dict[str, Any]:
        """The history, whose last values are logged again if the next comparison fails, and the levels of the ratio."""
        return {"history": list(self.history), "rise": self._rise.state_dict()}

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self._rise.load_state_dict(state_dict["rise"])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check names of layers, now that the module has built them, and begin with other images."""
        super().on_fit_start(trainer, pl_module)
        select_layers(pl_module, self.layers)
        self._images, self._undrawn = None, None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last figure, if that has not happened, and free the images."""
        super().on_fit_end(trainer, pl_module)
        self._images = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Free the images too."""
        super().on_exception(trainer, pl_module, exception)
        self._images = None

    def _release(self) -> None:
        self._fresh = None

    @until_validation_end
    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        layers = select_layers(pl_module, self.layers)
        self._units = [name for name in linear_layers(pl_module) if name not in layers]
        self._choose_keys(layers, self._units)
        if self.train_inputs is None and trainer.train_dataloader is None:  # outside of a fit
            self._due, self._values = False, {}
            rank_zero_info(
                "TwoSampleCallback compares nothing: this Trainer has no training images; give `train_inputs`."
            )

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compare after the first step, see `ValidationWatch.run_training_probe`."""
        if self._due:
            self._finish(trainer, pl_module, batch)

    @until_validation_end
    def _finish(self, trainer: Any, pl_module: Any, batch: Any = None) -> None:
        if self._fresh is not None:
            return
        start = perf_counter()
        with torch.inference_mode(False), torch.no_grad(), unlogged(pl_module):
            images = self._images or self._read_images(trainer, pl_module, batch)
            if trainer.state.fn == "fit":
                self._images = images
            train, val = images.values()
            with trainer.strategy.precision_plugin.forward_context():
                self._fresh = compare_groups(pl_module, train, val, self.layers, self.significance)
        self._seconds = perf_counter() - start

    def _read_images(self, trainer: Any, pl_module: Any, batch: Any) -> dict[str, ImageSource]:
        """Read the images once, warn of what may be wrong with them, and keep those that fit into the memory."""
        inputs = {"train_inputs": self.train_inputs, "val_inputs": self.val_inputs}
        sources = _open_sources(trainer, pl_module, inputs, self.sample_size, self.batch_size)
        images, seen = read_once(sources, self.max_memory_mb * 2**20)
        given = [name for name, source in inputs.items() if source is not None]
        doubts = describe_doubts(given, seen, batch)
        if self.train_inputs is None and is_augmented(sources["train_inputs"]):
            doubts["augmented"] = (
                "TwoSampleCallback reads training images that are augmented anew each time, which hides the gap: give "
                "plain ones as `train_inputs`."
            )
        for key, doubt in {**sources["train_inputs"].notes(), **sources["val_inputs"].notes(), **doubts}.items():
            self._warn_once(key, doubt)
        return images

    def _find(self, trainer: Any) -> TwoSampleReport | None:
        report = self._fresh
        assert report is not None
        output = report.compares_output  # else the values would say that it knows nothing of the training images
        some = output or any(layer.live.any() for layer in report.layers.values())
        self._warn_of(trainer, report.notes, some)
        if not some and self._has_found(trainer):
            return None
        self.report = report
        if output and trainer.state.fn == "fit":
            self._values["confidence_rise"] = self._rise.add(report.train_errors, report.val_errors)
            if self._rise.too_few_expected_errors:
                self._warn_once(
                    "few errors",
                    f"On the {report.n_train} training and the {report.n_val} validation images of TwoSampleCallback "
                    f"the network expects fewer than {MIN_ERRORS} errors, of which a few images decide: "
                    "`confidence_rise` is 0 meanwhile. Give more images.",
                )
        reported = [name for name in self._neutral if name not in ("confidence_rise", "seconds")]
        found = [name for name in reported if output or not name.startswith("confidence")]
        self._values |= {name: float(getattr(report, name)) for name in found} | {"seconds": self._seconds}
        self._values |= {f"layer/{name}": report.fraction_in([name]) for name in report.judged}
        return report

    @guarded
    def _remember(self, trainer: Any, found: TwoSampleReport | None) -> None:
        layers = {} if found is None else found.judged
        if found is None and not self.history:  # which of the linear layers have units to compare is not known yet
            self._values = {f"layer/{name}": 0.0 for name in self._units} | self._values
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metrics": dict(self._values),
                "compares_output": found is not None and found.compares_output,
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


def _open_sources(
    trainer: Any, pl_module: Any, given: Mapping[str, Source], sample_size: int, batch_size: int
) -> dict[str, ImageSource]:
    """Open the training and the validation images as they are `given`, or the Trainer's.

    A tensor is taken whole, and of anything else a random sample. The Trainer's training images get the transform of
    the validation images, where their data sets have one.
    """
    loaders = {"train_inputs": trainer.train_dataloader, "val_inputs": trainer.val_dataloaders}
    chosen = {name: first_loader(loaders[name]) if source is None else source for name, source in given.items()}
    if given["train_inputs"] is None and isinstance(chosen["train_inputs"], DataLoader):
        chosen["train_inputs"] = without_augmentation(chosen["train_inputs"], chosen["val_inputs"])
    precision, convert = trainer.strategy.precision_plugin, transferred_images(trainer, pl_module)
    return {
        name: ImageSource(precision.convert_input(source), name, batch_size)
        if isinstance(source, Tensor)
        else ImageSource(source, name, batch_size, sample=sample_size, **convert)
        for name, source in chosen.items()
    }
