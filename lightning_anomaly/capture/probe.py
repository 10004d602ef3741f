"""Run a model on a probe while its maps are taken, and choose the layers that gave usable ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
    module = model.module if isinstance(model, nn.DataParallel) else model
    scripted = isinstance(model, torch.jit.ScriptModule)

    def call(*args: Any, **kwargs: Any) -> Any:
        if scripted:
            return model(*args, **kwargs)
        named = module.named_buffers()
        copies = {name: given.get(name, buffer).to(buffer.device, copy=True) for name, buffer in named}
        return torch.func.functional_call(module, copies, args, kwargs, tie_weights=False)

    with evaluating(model), torch.no_grad():
        yield call


Inputs = ImageSource | tuple[Any, ...] | Mapping[str, Any]  # images, or the arguments of one call with all samples


def open_inputs(inputs: Any, argument: str, batch_size: int | None) -> Inputs:
    """Open what a user gives as samples, or raise ValueError."""
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
    """Run a model on a probe as `probing` does.

    `capture` takes the maps; `take_images` and `take_output` are called, batch by batch, with images of a source and
    with what the model returns.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    total = -(-len(inputs.positions) // inputs.batch_size) if isinstance(inputs, ImageSource) else 1
    with probing(model) as call:
        for arguments, keywords in track(_calls(inputs, device, take_images), total, "feature maps", progress):
            with capture:
                output = call(*arguments, **keywords)
            if take_output is not None:
                take_output(output)


def _calls(
    inputs: Inputs, device: torch.device, take_images: Callable[[Tensor], object] | None
) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    if isinstance(inputs, ImageSource):
        for images in inputs.readable():
            if take_images is not None:
                take_images(images)
            yield (images.to(device, copy=True),), {}  # a copy, as a model may change its input in place
        return
    from lightning.fabric.utilities.apply_func import move_data_to_device  # late: see `callbacks._trees`

    moved = move_data_to_device(clone_inputs(inputs), device)
    yield ((), moved) if isinstance(moved, Mapping) else (moved, {})


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
            problem = Note(f"it gave {{}} maps where {others} {{}}", layer.count, n_samples)
        if problem:
            notes |= left_out(name, problem)
        else:
            usable[name] = layer
    return usable, n_samples, notes
