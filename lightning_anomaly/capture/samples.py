"""Take statistics of each sample: its pixels, and the input and the output of the last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.layers import CONVOLUTIONS
from lightning_anomaly.capture.pixels import describes_pixels, pixel_statistics


class SampleStatistics(NamedTuple):
    """Statistics of N samples; None if the model has no such layer, or none with one row per sample."""

    pixels: Tensor | None = None  # `pixel_statistics` `(N, S)`
    shape: tuple[int, ...] = ()  # of a sample
    features: Tensor | None = None  # input of the last linear layer `(N, D)`
    logits: Tensor | None = None  # its output, for two or more classes `(N, classes)`
    class_names: tuple[str, ...] = ()  # if the data set names its classes

    def select(self, samples: Any) -> SampleStatistics:
        """Select samples by an index."""
        return self._each(lambda tensor: tensor[samples])

    def _each(self, change: Callable[[Tensor], Tensor | None]) -> SampleStatistics:
        tensors = self.pixels, self.features, self.logits
        pixels, features, logits = (None if tensor is None else change(tensor) for tensor in tensors)
        return self._replace(pixels=pixels, features=features, logits=logits)

    @staticmethod
    def join(parts: Sequence[SampleStatistics]) -> SampleStatistics:
        """Join the statistics of several parts; those that a part lacks, or has in another shape, become None."""
        pixels, shapes, features, logits, names = zip(*parts, strict=True)
        if len({*shapes}) > 1:
            return SampleStatistics(None, (), _join(features), _join(logits), names[0])
        return SampleStatistics(_join(pixels), shapes[0], _join(features), _join(logits), names[0])


def _join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    alike = len(present) == len(tensors) and len({tensor.shape[1:] for tensor in present}) == 1
    return torch.cat(present) if alike else None


class SampleCapture:
    """Takes `SampleStatistics` while a model runs; without a model it takes nothing.

    Pixels are those of the first convolution's input, the image as the network sees it. The last linear layer is the
    last one called with one row per sample that returns at least two numbers; its first call in a pass counts.
    """

    def __init__(self, model: nn.Module | None, limit: int) -> None:
        modules = [] if model is None else list(model.modules())
        self.watched: list[tuple[nn.Module, Callable[..., None]]] = [  # modules, and the forward hook of each
            *((module, self._take_pixels) for module in modules if isinstance(module, CONVOLUTIONS)),
            *((module, self._take_classes) for module in modules if isinstance(module, nn.Linear)),
        ]
        self._limit = limit
        self._passes: list[SampleStatistics] = []
        self._current = SampleStatistics()
        self._called: set[nn.Module] = set()
        self._seen = 0
        self.class_names: tuple[str, ...] = ()  # set by those who know the data set
        self.problem: str | None = None  # why nothing could be taken

    def end_pass(self, count: int) -> None:
        """Keep the statistics of one pass of `count` samples."""
        if count and self._seen < self._limit:
            self._passes.append(self._current.select(slice(self._limit - self._seen)))
        self._seen += count
        self._current = SampleStatistics()
        self._called.clear()

    def collected(self, samples: int) -> SampleStatistics:
        """Return the statistics of all samples, on the CPU; None for those with more or fewer rows."""
        if not self._passes or self.problem is not None:
            return SampleStatistics()
        joined = SampleStatistics.join(self._passes)._replace(class_names=self.class_names)
        return joined._each(lambda tensor: tensor.cpu() if len(tensor) == samples else None)

    def _take_pixels(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._current.shape or not args:
            return
        images = args[0].detach()
        has_pixels = images.is_floating_point() and describes_pixels(images.shape)
        statistics = pixel_statistics(images) if has_pixels else None
        self._current = self._current._replace(pixels=statistics, shape=tuple(images.shape[1:]))

    def _take_classes(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._called or not args or args[0].ndim != 2 or output.shape[1] < 2:
            return
        self._called.add(module)
        # Copies, as a later activation may change them in place.
        features, logits = (tensor.detach().to(torch.float32, copy=True) for tensor in (args[0], output))
        self._current = self._current._replace(features=features, logits=logits)
