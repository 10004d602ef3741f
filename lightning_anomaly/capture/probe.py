"""Run a model on a probe while its maps are taken, and choose the layers that gave usable ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.notes import left_out
from lightning_anomaly.progress import track


def check_inputs(inputs: Any, argument: str = "inputs") -> None:
    """Raise ValueError for what cannot be a probe; the message calls it by the name of the `argument`."""
    if not isinstance(inputs, (Tensor, tuple, Mapping)):
        raise ValueError(
            f"Parameter `{argument}` should be a tensor (N, ...), or a tuple or dict with the arguments of one call. "
            f"Found {type(inputs).__name__}: make one tensor of the images (`torch.from_numpy`, `torch.stack`)."
        )
    if len(inputs) == 0:
        found = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else repr(inputs)
        raise ValueError(f"Parameter `{argument}` should hold samples. Found {found}.")


def tensors_in(values: Any) -> list[Tensor]:
    """Find all tensors in a batch, or in what a model returns, whatever they are kept in."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    elif is_dataclass(values) and not isinstance(values, type):
        values = [getattr(values, field.name) for field in fields(values)]
    parts = values if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def clone_inputs(inputs: Any) -> Any:
    """Copy all tensors in the arguments of a model, which may change them in place."""
    return apply_to_collection(inputs, Tensor, lambda tensor: tensor.detach().clone(), allow_frozen=True)


@contextmanager
def probing(model: nn.Module, buffers: Mapping[str, Tensor] | None = None) -> Iterator[Callable[..., Any]]:
    """Run a model in evaluation mode and without gradients.

    What is yielded calls the model, each time on fresh copies of its buffers, so that no batch leaves a trace; of those
    named in `buffers`, on copies of these, wherever they lie.
    """
    given = buffers or {}
    # Neither can be called with other buffers: a scripted one as it is, and the other is its module on one device.
    own = model.module if isinstance(model, nn.DataParallel) else model
    scripted = isinstance(model, torch.jit.ScriptModule)

    def call(*args: Any, **kwargs: Any) -> Any:
        if scripted:
            return model(*args, **kwargs)
        named = own.named_buffers()
        copies = {name: given.get(name, buffer).to(buffer.device, copy=True) for name, buffer in named}
        return torch.func.functional_call(own, copies, args, kwargs, tie_weights=False)

    with evaluating(model), torch.no_grad():
        yield call


def run(
    model: nn.Module,
    inputs: Any,
    capture: MapCapture,
    progress: bool | None = False,
    *,
    batch_size: int = 64,
    take_output: Callable[[Any], object] | None = None,
) -> None:
    """Run a model on a probe as `probing` does, with inputs as `analyze` takes them.

    `capture` takes the maps, and `take_output` is called with what the model returns, batch by batch.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    total = math.ceil(len(inputs) / batch_size) if isinstance(inputs, Tensor) else 1
    with probing(model) as call:
        for arguments, keywords in track(_calls(inputs, device, total), total, "feature maps", progress):
            with capture:
                output = call(*arguments, **keywords)
            if take_output is not None:
                take_output(output)


def _calls(inputs: Any, device: torch.device, batches: int) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    if isinstance(inputs, Tensor):
        # Of nearly equal size: one image alone is no batch for a model that squeezes.
        return (((batch.to(device, copy=True),), {}) for batch in torch.tensor_split(inputs, batches))
    from lightning.fabric.utilities.apply_func import move_data_to_device  # late: see `callbacks._trees`

    inputs = move_data_to_device(clone_inputs(inputs), device)
    if isinstance(inputs, Mapping):
        return [((), dict(inputs))]
    return [(inputs, {})]


def most_samples(maps: Mapping[str, LayerMaps]) -> int:
    """Count the samples that most layers gave, of those that gave any and have no problem; 0 if there are none."""
    counts = Counter(layer.count for layer in maps.values() if layer.count and layer.problem is None)
    return counts.most_common(1)[0][0] if counts else 0


def usable_layers(
    maps: Mapping[str, LayerMaps], expected: int | None = None
) -> tuple[dict[str, LayerMaps], int, dict[str, str]]:
    """Choose the layers with a map of every sample; return them, the number of samples, and notes on the other layers.

    None expects as many samples as most layers gave.
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
