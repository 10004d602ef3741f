"""Run a model on a probe to take its maps, and choose the layers with usable ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_anomaly.capture.hooks import MapCapture, evaluating
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.images.source import ImageSource
from lightning_anomaly.notes import Note, left_out
from lightning_anomaly.progress import track


def clone_inputs(inputs: Any) -> Any:
    """Copy all tensors in the arguments of a model, as it may change them in place."""
    return apply_to_collection(inputs, Tensor, lambda tensor: tensor.detach().clone(), allow_frozen=True)


@contextmanager
def probing(model: nn.Module, buffers: Mapping[str, Tensor] | None = None) -> Iterator[Callable[..., Any]]:
    """Yield a function that calls the model without gradients, in evaluation mode and on copies of its buffers.

    `buffers` replace those of the model with the same names.
    """
    replaced = buffers or {}
    # Neither a scripted model nor DataParallel can be called with other buffers.
    module = model.module if isinstance(model, nn.DataParallel) else model

    def call(*args: Any, **kwargs: Any) -> Any:
        if isinstance(model, torch.jit.ScriptModule):
            return model(*args, **kwargs)
        named = module.named_buffers()
        copies = {name: replaced.get(name, buffer).to(buffer.device, copy=True) for name, buffer in named}
        return torch.func.functional_call(module, copies, args, kwargs, tie_weights=False)

    with evaluating(model), torch.no_grad():
        yield call


Inputs = ImageSource | tuple[Any, ...] | Mapping[str, Any]  # images, or the arguments of one call with all samples


def open_inputs(inputs: Any, argument: str, batch_size: int | None) -> Inputs:
    """Open a user's images, or check the arguments of one call; raise ValueError if there are none."""
    if not isinstance(inputs, (tuple, Mapping)):
        return ImageSource(inputs, argument, batch_size)
    if not inputs:
        raise ValueError(f"Parameter `{argument}` should hold images. Found {inputs!r}.")
    return inputs


def run(
    model: nn.Module,
    inputs: Inputs,
    capture: MapCapture,
    progress: bool | None = False,
    *,
    take_images: Callable[[Tensor], object] | None = None,
    take_output: Callable[[Any], object] | None = None,
) -> None:
    """Run a model on a probe while `capture` takes its maps; the two functions get each batch and each output."""
    from lightning.fabric.utilities.apply_func import move_data_to_device  # late: see `callbacks._trees`

    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    calls: Iterable[Any] = [inputs]
    total = 1
    if isinstance(inputs, ImageSource):
        calls = ((images,) for images in inputs.readable())
        total = -(-len(inputs.positions) // inputs.batch_size)
    with probing(model) as call:
        for arguments in track(calls, total, "feature maps", progress):
            if take_images is not None and isinstance(inputs, ImageSource):
                take_images(arguments[0])
            moved = move_data_to_device(clone_inputs(arguments), device)
            with capture:
                output = call(**moved) if isinstance(moved, Mapping) else call(*moved)
            if take_output is not None:
                take_output(output)


def most_samples(maps: Mapping[str, LayerMaps]) -> int:
    """Return the number of maps that most layers without a problem gave; 0 if none gave any."""
    counts = Counter(layer.count for layer in maps.values() if layer.count and layer.problem is None)
    return counts.most_common(1)[0][0] if counts else 0


def usable_layers(
    maps: Mapping[str, LayerMaps], expected: int | None = None
) -> tuple[dict[str, LayerMaps], int, dict[str, str]]:
    """Return the layers with a map of every sample, the number of samples, and notes on the other layers.

    Without an `expected` number of samples, it is that of most layers.
    """
    n_samples = most_samples(maps) if expected is None else expected
    usable: dict[str, LayerMaps] = {}
    notes: dict[str, str] = {}
    for name, layer in maps.items():
        problem = layer.problem or (None if layer.batches else "it was never called")
        if problem is None and layer.count != n_samples:
            others = "most layers gave" if expected is None else "the samples are"
            problem = Note(f"it gave {{}} maps where {others} {{}}", layer.count, n_samples)
        if problem:
            notes |= left_out(name, problem)
        else:
            usable[name] = layer
    return usable, n_samples, notes
