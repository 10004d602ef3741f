"""Run a model in evaluation mode, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.progress import track
from lightning_anomaly._internal.random_state import kept_random_state
from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.network.layer_maps import MapCapture

_NUMBERS = 2**20  # in the images that run at a time on a CPU


def copy_for_model(images: Tensor, model: nn.Module) -> Tensor:
    """Copy images, which a model may change in place, to its device, and floating-point ones to its dtype."""
    floats = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    first = next(floats, torch.empty(0, dtype=images.dtype, device="cpu"))
    return images.detach().to(first.device, first.dtype if images.is_floating_point() else images.dtype, copy=True)


def pieces_to_run(images: Tensor, model: nn.Module) -> Sequence[Tensor]:
    """Split a batch into what runs at a time on a CPU: a million numbers, which are 6 images of 224 x 224.

    The largest activations of most networks have about 32 bytes for each number of the images. Tensors above 32 MB are
    mapped anew for each call, which takes as long as the computation: docs/speed.md. An accelerator takes the batch.
    """
    if next(chain(model.parameters(), model.buffers()), images).device.type != "cpu" or not len(images):
        return [images]
    # No piece has one image, as that breaks models.
    return torch.tensor_split(images, max(1, min(-(-len(images) // images_at_a_time(images)), len(images) // 2)))


def images_at_a_time(images: Tensor) -> int:
    """Return how many images have a million numbers, at least two."""
    return max(2, _NUMBERS // max(1, images[0].numel()))


@contextmanager
def isolated_calls(model: nn.Module, part: Callable[..., Any] | None = None) -> Iterator[Callable[..., Any]]:
    """Yield a function that calls a model, or its `part`, in evaluation mode, without gradients, on copied buffers."""
    scripted = torch.jit.ScriptModule  # keeps its buffers elsewhere
    with evaluating(model) as modules, torch.no_grad():
        owners = [module._buffers for module in modules if module._buffers and not isinstance(module, scripted)]

        def call(*args: Any, **kwargs: Any) -> Any:
            before = [buffers.copy() for buffers in owners]
            try:
                for buffers in owners:
                    buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
                return (model if part is None else part)(*args, **kwargs)
            finally:
                for buffers, kept in zip(owners, before, strict=True):
                    buffers.clear()
                    buffers.update(kept)

        yield call


def run_model(
    model: nn.Module,
    source: ImageSource,
    capture: MapCapture,
    progress: bool | None = False,
    *,
    call: Callable[[Tensor], Any] | None = None,
    take_output: Callable[[Any], object] | None = None,
) -> None:
    """Run a model, or its part `call`, on a probe while `capture` takes maps; `take_output` gets each output."""
    total = -(-len(source.positions) // source.batch_size)
    with isolated_calls(model, call) as forward:
        batches = track(source.readable_batches(), total, "feature maps", progress)
        for images in chain.from_iterable(pieces_to_run(batch, model) for batch in batches):
            with capture:
                capture.samples.take_images(images)
                output = forward(copy_for_model(images, model))
                if not capture.layers:  # which would tell how many samples the pass had
                    capture.samples.end_pass(len(images))
            if take_output is not None:
                take_output(output)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Switch a model to evaluation mode and yield its modules; restore flags and random states at the end."""
    with kept_random_state():
        flags = [(module, module.training) for module in model.modules()]
        try:
            for module, training in flags:  # not `model.eval()`, which a model may override
                if training:  # as setting an attribute of a module takes long
                    module.training = False
            yield [module for module, _ in flags]
        finally:
            for module, training in flags:
                if module.training != training:
                    module.training = training
