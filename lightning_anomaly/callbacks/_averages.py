"""Averages of the weights that other callbacks keep, from which masked filters would come back."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_anomaly.pruning.mask import FilterMask

__all__ = ["mask_averages"]


def mask_averages(mask: FilterMask, trainer: Any, pl_module: Any) -> list[str]:
    """Zeroes masked filters in the averaged copies too; an average of zeros stays zero.

    Args:
        mask: The mask of the model.
        trainer: The Trainer, whose callbacks are searched: Lightning's weight averaging (SWA, EMA) and any other
            callback with torch's `AveragedModel`.
        pl_module: The model, which may have an `AveragedModel` among its own layers.

    Returns:
        What could not be masked, as sentences.
    """
    problems = []
    for callback in trainer.callbacks:
        for copy in _copies(callback):
            try:
                with warnings.catch_warnings():  # what there is to say was said about the model itself
                    warnings.simplefilter("ignore")
                    FilterMask.from_state_dict(copy, mask.state_dict())
            except ValueError:
                problems.append(
                    f"{type(callback).__name__} averages a model that does not have the masked layers under the same "
                    "names: masked filters may come back from the average."
                )
    if any(isinstance(module, AveragedModel) for module in pl_module.modules()):
        problems.append(
            "The module has an AveragedModel among its layers, in which filters are not masked with those that it "
            "averages: masked filters may come back from the average."
        )
    return problems


def _copies(callback: Any) -> list[nn.Module]:
    copies = [value.module for value in vars(callback).values() if isinstance(value, AveragedModel)]
    # Lightning's SWA keeps a plain copy, in a private attribute; any other module of a callback may be something else.
    if any(cls.__name__ == "StochasticWeightAveraging" for cls in type(callback).__mro__):
        copy = getattr(callback, "_average_model", None)
        copies += [copy] if isinstance(copy, nn.Module) else []
    return copies
