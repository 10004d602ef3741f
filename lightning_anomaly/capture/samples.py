"""Take statistics of each sample: its pixels, and the input and output of the last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.layers import CONVOLUTIONS
from lightning_anomaly.capture.pixels import describes_pixels, pixel_statistics


class SampleStatistics(NamedTuple):
    """Statistics of N samples; None where the model has no such layer, or not for each sample."""

    pixels: Tensor | None = None  # see `pixel_statistics` `(N, S)`
    shape: tuple[int, ...] = ()  # of a sample, without its batch
    features: Tensor | None = None  # input of the last linear layer `(N, D)`
    logits: Tensor | None = None  # its output, of two or more classes `(N, classes)`
    class_names: tuple[str, ...] = ()  # where the data set names its classes

    def select(self, samples: Any) -> SampleStatistics:
        """Select samples."""
        return self._each(lambda tensor: tensor[samples])

    def _each(self, change: Callable[[Tensor], Tensor | None]) -> SampleStatistics:
        tensors = self.pixels, self.features, self.logits
        pixels, features, logits = (None if tensor is None else change(tensor) for tensor in tensors)
        return self._replace(pixels=pixels, features=features, logits=logits)

    @staticmethod
    def join(parts: Sequence[SampleStatistics]) -> SampleStatistics:
        """Join statistics of several samples; what one part does not have, or in another shape, is None."""

        def join(tensors: Sequence[Tensor | None]) -> Tensor | None:
            known = [tensor for tensor in tensors if tensor is not None]
            alike = len({tensor.shape[1:] for tensor in known}) == 1
            return torch.cat(known) if alike and len(known) == len(tensors) else None

        pixels, shapes, features, logits, names = zip(*parts, strict=True)
        same = len({*shapes}) == 1
        known, shape = (join(pixels), shapes[0]) if same else (None, ())
        return SampleStatistics(known, shape, join(features), join(logits), names[0])


class SampleCapture:
    """Takes `SampleStatistics` while a model runs.

    Pixels are those of the first convolution's input, which is the image as the network sees it. The last linear layer
    is the last one that is called with one row for each sample and gives two numbers or more. If a layer is called
    several times in one pass, its first call counts. Without a model nothing is taken.
    """

    def __init__(self, model: nn.Module | None, limit: int) -> None:
        modules = [] if model is None else list(model.modules())
        self.watched: list[tuple[nn.Module, Callable[..., None]]] = [  # and what a forward hook on it calls
            *((module, self._take_pixels) for module in modules if isinstance(module, CONVOLUTIONS)),
            *((module, self._take_classes) for module in modules if isinstance(module, nn.Linear)),
        ]
        self._limit = limit
        self._passes: list[SampleStatistics] = []
        self._current = SampleStatistics()
        self._called: set[nn.Module] = set()
        self._seen = 0
        self.class_names: tuple[str, ...] = ()  # which the data set knows, and not the model
        self.problem: str | None = None  # why nothing is known, if taking it has failed

    def end_pass(self, count: int) -> None:
        """Keep what one pass of `count` samples has shown."""
        if count and self._seen < self._limit:
            self._passes.append(self._current.select(slice(self._limit - self._seen)))
        self._seen += count
        self._current = SampleStatistics()
        self._called.clear()

    def collected(self, samples: int) -> SampleStatistics:
        """Return the statistics of so many samples, on the CPU; None where the model gave more or fewer."""
        if not self._passes or self.problem is not None:
            return SampleStatistics()
        known = SampleStatistics.join(self._passes)._each(
            lambda tensor: tensor.cpu() if len(tensor) == samples else None
        )
        return known._replace(class_names=self.class_names)

    def _take_pixels(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._current.shape or not args:
            return
        images = args[0].detach()
        known = images.is_floating_point() and describes_pixels(images.shape)
        statistics = pixel_statistics(images) if known else None
        self._current = self._current._replace(pixels=statistics, shape=tuple(images.shape[1:]))

    def _take_classes(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._called or not args or args[0].ndim != 2 or output.shape[1] < 2:
            return
        self._called.add(module)
        # Copies, as an activation in place would change them.
        features, logits = (tensor.detach().to(torch.float32, copy=True) for tensor in (args[0], output))
        self._current = self._current._replace(features=features, logits=logits)
