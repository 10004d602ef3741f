"""A model is run on a probe while its maps are taken, and the layers that gave usable maps are told from the others."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_anomaly.capture.hooks import MapCapture, evaluating, exclusive_capture
from lightning_anomaly.capture.keeping import copied, keeping_metrics, keeping_state
from lightning_anomaly.capture.layers import CONVOLUTIONS
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.notes import left_out
from lightning_anomaly.progress import track

__all__ = [
    "check_inputs",
    "most_samples",
    "probing",
    "run",
    "usable_layers",
]

_BATCH = 64


def check_inputs(inputs: Any, argument: str = "inputs") -> None:
    """Raises ValueError for what cannot be a probe; the message calls it by the name of the `argument`."""
    if isinstance(inputs, (np.ndarray, Dataset, DataLoader)):
        raise ValueError(
            f"Parameter `{argument}` should be a tensor (N, ...), or a tuple or dict with the arguments of one call. "
            f"Found {type(inputs).__name__}: for the images of an array give `torch.from_numpy(array)`, for those of a "
            "data set or loader one tensor of as many as the probe should have."
        )
    if not isinstance(inputs, (Tensor, tuple, Mapping)):
        raise ValueError(
            f"Parameter `{argument}` should be a tensor (N, ...). Found {type(inputs).__name__}: give the images "
            "alone, as one tensor (`torch.stack`, `torch.cat`), or the arguments of one call in a tuple or dict."
        )
    if isinstance(inputs, Tensor) and (inputs.ndim == 0 or len(inputs) == 0):
        raise ValueError(f"Parameter `{argument}` should hold samples. Found shape {tuple(inputs.shape)}.")
    if not isinstance(inputs, Tensor) and not inputs:
        raise ValueError(f"Parameter `{argument}` should hold samples. Found {inputs!r}.")


@contextmanager
def probing(model: nn.Module, capture: MapCapture) -> Iterator[Callable[[], None]]:
    """What holds while a model is run for its maps: evaluation mode, no gradients, and no other capture takes any.

    What is yielded is to be called after each forward pass: it gives the model's state back.
    """
    with (
        evaluating(model),
        keeping_metrics(model),
        exclusive_capture(capture),
        torch.no_grad(),
        keeping_state(model) as give_back,
    ):
        yield give_back


def run(
    model: nn.Module,
    inputs: Any,
    capture: MapCapture,
    progress: bool | None = False,
    *,
    argument: str = "inputs",
    take_output: Callable[[Any], object] | None = None,
) -> None:
    """Run a model on a probe in evaluation mode, without gradients; afterwards it is as before.

    Args:
        model: Any model, on any device.
        inputs: A tensor `(N, ...)`, in batches, a tuple with the arguments of one call or a dict with its keywords;
            moved to the model's device.
        capture: What takes the maps.
        progress: Whether a bar is shown, see `analyze`.
        argument: The name that errors call `inputs` by.
        take_output: Called with what the model returns, batch by batch.

    Raises:
        ValueError: If the model is on the meta device, or its weights are of another type than the inputs.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type == "meta" and capture.maps:
        raise ValueError(
            "Parameter `model` should have weights. Found it on the meta device, which has none: build it elsewhere, "
            "or call `model.to_empty(device='cpu')` and load its weights."
        )
    with probing(model, capture) as give_back:
        total = math.ceil(len(inputs) / _BATCH) if isinstance(inputs, Tensor) else 1
        for arguments, keywords in track(_calls(inputs, device), total, "feature maps", progress):
            with capture:
                try:
                    output = model(*arguments, **keywords)
                except RuntimeError as error:
                    types = {value.dtype for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)}
                    _refuse_type(argument, types, error)
                    raise
            if take_output is not None:
                take_output(output)
            give_back()


def _refuse_type(argument: str, types: set[torch.dtype], error: RuntimeError) -> None:
    """Raises ValueError if a model failed because a layer was given inputs of another type than its weights.

    The layer is sought where the error comes from. The types of the model's parameters alone do not tell: it may take
    integers, for an embedding, or convert its inputs itself; and hooks would take transformers off their fast path.

    Args:
        argument: The name of the inputs.
        types: Their types.
        error: What the model raised.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        layer = frame.f_locals.get("self")
        weight = layer.weight if isinstance(layer, (*CONVOLUTIONS, nn.Linear)) else None
        if weight is None or not weight.is_floating_point():
            continue
        for value in frame.f_locals.values():
            if isinstance(value, Tensor) and value.dtype in types - {weight.dtype}:
                scaling = "" if value.is_floating_point() else ", scaled as in the training"
                raise ValueError(
                    f"Parameter `{argument}` should have the type of the model's weights, {weight.dtype}. Found "
                    f"{value.dtype}: give `{argument}.to({weight.dtype})`{scaling}."
                ) from error


def _calls(inputs: Any, device: torch.device) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    if isinstance(inputs, Tensor):
        # Of nearly equal size: one image alone is no batch for a model that squeezes.
        batches = torch.tensor_split(inputs, math.ceil(len(inputs) / _BATCH))
        return (((batch.to(device, copy=True),), {}) for batch in batches)
    inputs = move_data_to_device(copied(inputs), device)
    if isinstance(inputs, Mapping):
        return [((), dict(inputs))]
    return [(inputs, {})]


def most_samples(maps: Mapping[str, LayerMaps]) -> int:
    """How many samples most layers gave, of those that gave any and have no problem, if there are such; else 0."""
    counts = Counter(layer.count for layer in maps.values() if layer.count and layer.problem is None)
    return counts.most_common(1)[0][0] if counts else 0


def usable_layers(
    maps: Mapping[str, LayerMaps], expected: int | None = None
) -> tuple[dict[str, LayerMaps], int, dict[str, str]]:
    """The layers with a map of every sample.

    Args:
        maps: What a `MapCapture` took.
        expected: Number of samples; None takes what most layers gave.

    Returns:
        These layers, the number of samples, and notes on the layers that are left out.
    """
    n_samples = most_samples(maps) if expected is None else expected
    usable: dict[str, LayerMaps] = {}
    notes: dict[str, str] = {}
    for name, layer in maps.items():
        problem = layer.problem or (None if layer.batches else "it was never called")
        if problem is None and layer.count != n_samples:
            others = "most layers gave" if expected is None else "the samples are"
            problem = f"it gave {layer.count} maps where {others} {n_samples}"
        if problem:
            notes |= left_out(name, problem)
        else:
            usable[name] = layer
    return usable, n_samples, notes
