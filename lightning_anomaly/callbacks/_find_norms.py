"""Find the norms behind the filters of a Trainer's module, and averages of its weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_anomaly.callbacks._probe import unlogged
from lightning_anomaly.capture.probe import clone_inputs
from lightning_anomaly.images.source import first_tensor
from lightning_anomaly.pruning.norms import FoundNorms, call_model, find_norms, has_norms

_SAMPLES = 4  # that are enough to find norms


def find_norms_on(
    batch: Any, trainer: Any, pl_module: Any, masked: Mapping[str, list[int]], chosen: Mapping[str, list[int]]
) -> FoundNorms:
    """Find the norms behind filters by `forward`, or by `validation_step` if that fails or leaves out a layer."""
    if not chosen or not has_norms(pl_module):
        return FoundNorms({}, [], set(chosen))
    filters = {layer: [*masked.get(layer, ()), *chosen.get(layer, ())] for layer in {*masked, *chosen}}
    few = apply_to_collection(batch, Tensor, lambda tensor: tensor[:_SAMPLES] if tensor.ndim else tensor)
    images = first_tensor(few)
    with trainer.precision_plugin.forward_context(), unlogged(pl_module):
        try:
            norms = find_norms(pl_module, filters, partial(call_model, pl_module, (few if images is None else images,)))
            if chosen.keys() <= norms.called:
                return norms
        except Exception:  # it may take anything but images, or not be there at all
            pass
        # A copy without loggers: metrics, lists and whatever else a `validation_step` changes are its own.
        tried = copy.deepcopy(pl_module)
        tried.trainer = trainer
        silent = {"logger": DummyLogger(), "loggers": []}
        tried.__class__ = type(type(pl_module).__name__, (type(pl_module),), silent)
        arguments = len(inspect.signature(tried.validation_step).parameters)
        with unlogged(tried):
            return find_norms(tried, filters, lambda: tried.validation_step(*(clone_inputs(few), 0, 0)[:arguments]))


def average_models(callbacks: list[Any]) -> Iterator[nn.Module]:
    """Find the averages of the model that callbacks keep."""
    for callback in callbacks:
        yield from (value.module for value in vars(callback).values() if isinstance(value, AveragedModel))
        # Lightning's SWA keeps a plain copy, privately; any other module of a callback may be something else.
        if any(cls.__name__ == "StochasticWeightAveraging" for cls in type(callback).__mro__):
            average = getattr(callback, "_average_model", None)
            yield from [average] if isinstance(average, nn.Module) else []
