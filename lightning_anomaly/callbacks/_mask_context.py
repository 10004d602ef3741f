"""What a mask depends on in a Trainer: norms behind filters, other pruning."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_anomaly.callbacks._probe import unlogged
from lightning_anomaly.capture.layers import CONVOLUTIONS
from lightning_anomaly.images.source import first_tensor
from lightning_anomaly.pruning.filter_rows import conv_rows
from lightning_anomaly.pruning.norms import FoundNorms, call_model, clone_inputs, find_norms, has_norms

_SAMPLES = 4  # enough to find norms


def find_norms_on(
    batch: Any, trainer: Any, pl_module: Any, masked: Mapping[str, list[int]], chosen: Mapping[str, list[int]]
) -> FoundNorms:
    """Find the norms behind filters by `forward`, or by `validation_step` if that fails or misses a layer."""
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
        except Exception:  # there may be no `forward`, or one with other arguments
            pass
        # A copy without loggers, as a `validation_step` may change metrics, lists and other attributes.
        module = copy.deepcopy(pl_module)
        module.trainer = trainer
        silent = {"logger": DummyLogger(), "loggers": []}
        module.__class__ = type(type(pl_module).__name__, (type(pl_module),), silent)
        arguments = len(inspect.signature(module.validation_step).parameters)
        with unlogged(module):
            return find_norms(module, filters, lambda: module.validation_step(*(clone_inputs(few), 0, 0)[:arguments]))


def check_maskable(layers: Mapping[str, nn.Module], callbacks: list[Any]) -> None:
    """Raise ValueError if a layer cannot be masked, or if Lightning's ModelPruning will replace its weights."""
    for name, layer in layers.items():
        if isinstance(layer, CONVOLUTIONS):
            conv_rows(name, layer, [0])
    prunings = [prune for prune in callbacks if any(cls.__name__ == "ModelPruning" for cls in type(prune).__mro__)]
    pruned = [layer for prune in prunings for layer, parameter in prune._parameters_to_prune if parameter == "weight"]
    if names := sorted(name for name, layer in layers.items() if layer in pruned):
        raise ValueError(
            "AnomalyPruneCallback should be used without a ModelPruning of the same layers, which replaces their "
            f"weights. Found {names}: list other layers in its `parameters_to_prune`."
        )
