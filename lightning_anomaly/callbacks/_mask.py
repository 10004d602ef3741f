"""A mask on the module of a Trainer: how the norms behind it are found, and what has to be kept at zero."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_anomaly.capture.probe import clone_inputs
from lightning_anomaly.distributed import broadcast_result, gather_results
from lightning_anomaly.pruning.filter_rows import CONVOLUTIONS, conv_rows
from lightning_anomaly.pruning.mask import FilterMask
from lightning_anomaly.pruning.norms import FoundNorms, call_model, find_norms, has_norms

__all__ = ["TrainerMask", "check_maskable"]

_SAMPLES = 4  # that are kept of a batch


class TrainerMask:
    """The mask of the module that a Trainer fits, from one fit to the next and through checkpoints."""

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self.mask: FilterMask | None = None  # before there is a model
        self._loaded: dict[str, Any] | None = None  # the mask's state, until there is a model to mask
        self._module: nn.Module | None = None  # while a Trainer works with it
        self._batch: Any = None
        self._warn = warn

    def forget(self) -> None:
        """Know no mask."""
        self.mask, self._loaded = None, None

    @property
    def masked(self) -> dict[str, list[int]]:
        """`{layer: [filter, ...]}`."""
        if self.mask is not None:
            return self.mask.masked
        return {} if self._loaded is None else dict(self._loaded["filters"])

    @property
    def count(self) -> int:
        """Number of masked filters."""
        return sum(map(len, self.masked.values()))

    @property
    def parameter_fraction(self) -> float:
        """Parameters of the masked filters as a fraction of all."""
        return 0.0 if self.mask is None else self.mask.parameter_fraction

    def state_dict(self) -> dict[str, Any]:
        """The mask as plain values."""
        empty: dict[str, Any] = {"filters": {}, "zeros": {}}
        return {"mask": self.mask.state_dict() if self.mask is not None else self._loaded or empty}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave: at once while a Trainer works with the model, else when the fit starts."""
        self.mask, self._loaded = None, state["mask"]
        if self._module is not None:
            self.attach(self._module)

    def attach(self, pl_module: nn.Module) -> None:
        """Until `detach`, what a checkpoint had masked is masked in this model."""
        self._module = pl_module
        if self._loaded is not None:
            self.mask = FilterMask.from_state_dict(pl_module, self._loaded)
        self._loaded = None

    def start(self, pl_module: nn.Module) -> None:
        """Begin a fit: mask what a checkpoint, or an earlier fit of this model, had masked."""
        self.attach(pl_module)
        if self.mask is None:
            self.mask = FilterMask(pl_module)
        elif not self.mask.verify():
            self._warn(
                "other weights",
                f"Other weights were loaded since AnomalyPruneCallback masked {self.count} filters of this model. It "
                "masks them again now: to begin without, give the Trainer a new one.",
            )

    def detach(self) -> None:
        """End what a Trainer does with the model."""
        self._module = self._batch = None

    def holds_in(self, pl_module: nn.Module) -> bool:
        """Whether it is this model that is masked, right now."""
        return self.mask is not None and self.mask.model is pl_module and self.mask.verify()

    def keep_batch(self, batch: Any) -> None:
        """Keep a copy of a few samples until filters are masked: the model is run on them to find its norms."""
        if self._batch is None:
            lengths: set[tuple[int, ...]] = set()
            apply_to_collection(batch, Tensor, lambda tensor: lengths.add(tuple(tensor.shape[:1])))
            # All of it where the tensors are not of one sample in each row, such as images of several sizes.
            most = _SAMPLES if len(lengths) == 1 and () not in lengths else None
            with torch.inference_mode(False):
                self._batch = clone_inputs(
                    apply_to_collection(batch, Tensor, lambda t: t if most is None else t[:most])
                )

    def add(
        self, trainer: Any, pl_module: Any, choose: Callable[[], dict[str, list[int]]]
    ) -> dict[str, list[int]] | None:
        """Mask the `{layer: [filter, ...]}` that `choose` gives in process 0, in all processes.

        Returns:
            What of it was masked; None if no process has a batch to find the norms with.
        """
        assert self.mask is not None
        chosen = broadcast_result(choose)
        # The first process that has a batch decides for all: some may have seen none.
        found = gather_results(lambda: self._find_norms(trainer, pl_module, chosen))
        norms = next((norms for norms in found if norms is not None), None)
        if norms is None:
            return None
        for layer in sorted(chosen.keys() - norms.called):
            self._warn(
                f"uncalled {layer}",
                f"AnomalyPruneCallback leaves layer '{layer}' as it is: neither `forward` nor `validation_step` calls "
                "it, so that the norms behind it cannot be found.",
            )
        chosen = {layer: filters for layer, filters in chosen.items() if layer in norms.called}
        self.mask.add(chosen, norms=norms, optimizers=trainer.optimizers)
        self.keep_everywhere(trainer, pl_module)
        self._batch = None
        return chosen

    def _find_norms(self, trainer: Any, pl_module: Any, chosen: Mapping[str, list[int]]) -> FoundNorms | None:
        """Run `forward` on the batch, or `validation_step` if that fails or leaves out a layer."""
        if not chosen or not has_norms(pl_module):
            return FoundNorms({}, [], set(chosen))
        if self._batch is None:
            return None
        filters = {layer: [*self.masked.get(layer, ()), *chosen.get(layer, ())] for layer in {*self.masked, *chosen}}
        inputs = self._batch[0] if isinstance(self._batch, (list, tuple)) else self._batch
        with trainer.precision_plugin.forward_context():
            try:
                norms = find_norms(pl_module, filters, partial(call_model, pl_module, (inputs,)))
                if chosen.keys() <= norms.called:
                    return norms
            except Exception:  # it may take anything but a batch, or not be there at all
                pass
            tried = _silent_copy(trainer, pl_module)
            arguments = len(inspect.signature(tried.validation_step).parameters)
            return find_norms(
                tried, filters, lambda: tried.validation_step(*(clone_inputs(self._batch), 0, 0)[:arguments])
            )

    def keep_gradients(self) -> None:
        """Zero the gradients of the masked filters."""
        if self.mask is not None:
            self.mask.keep_gradients()

    def keep(self, trainer: Any) -> None:
        """Zero the masked filters again, and their part of the optimizers' state."""
        if self.mask is not None:
            self.mask.keep(trainer.optimizers)

    def keep_everywhere(self, trainer: Any, pl_module: Any) -> None:
        """Do the same, and in averages of the weights that callbacks keep; an average of zeros stays zero."""
        if not self.masked or self.mask is None:
            return
        self.mask.keep(trainer.optimizers)
        for callback in trainer.callbacks:
            for average in _averages(callback):
                try:
                    FilterMask.from_state_dict(average, self.mask.state_dict())
                except ValueError:
                    self._warn(
                        f"average of {type(callback).__name__}",
                        f"{type(callback).__name__} averages a model that does not have the masked layers under the "
                        "same names: masked filters may come back from the average.",
                    )

    def check(self, when: str) -> None:
        """Warn if masked filters are not at zero."""
        if self.mask is not None and not self.mask.verify():
            self._warn(
                f"not at zero {when}",
                f"Masked filters were not at zero {when}: something other than an optimizer writes to the weights, "
                "such as a callback that averages them.",
            )


def _silent_copy(trainer: Any, pl_module: Any) -> Any:
    """A copy that logs nothing; metrics, lists and whatever else a `validation_step` changes are its own."""
    tried = copy.deepcopy(pl_module)
    tried.trainer = trainer
    silent = {"log": _ignore, "log_dict": _ignore, "logger": DummyLogger(), "loggers": []}
    tried.__class__ = type(type(pl_module).__name__, (type(pl_module),), silent)
    return tried


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""


def _averages(callback: Any) -> list[nn.Module]:
    averages = [value.module for value in vars(callback).values() if isinstance(value, AveragedModel)]
    # Lightning's SWA keeps a plain copy, in a private attribute; any other module of a callback may be something else.
    if any(cls.__name__ == "StochasticWeightAveraging" for cls in type(callback).__mro__):
        average = getattr(callback, "_average_model", None)
        averages += [average] if isinstance(average, nn.Module) else []
    return averages


def check_maskable(layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError when a fit begins for a layer that could not be masked, rather than in the middle of it."""
    for name, module in layers.items():
        if isinstance(module, CONVOLUTIONS) and not any(map(is_lazy, module.parameters(recurse=False))):
            try:
                conv_rows(name, module, [0])
            except ValueError as error:
                raise ValueError(
                    f"{error} AnomalyPruneCallback cannot mask it: name the other layers in `layers` of an "
                    "AnomalyFilterCallback."
                ) from error
