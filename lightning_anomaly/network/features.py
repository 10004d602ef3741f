"""Take statistics of each sample: its pixels, and the features and logits that a network computes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_anomaly.images.batches import named_tensors
from lightning_anomaly.images.thumbnails import SIDE, shrink_images
from lightning_anomaly.network.layers import CONVOLUTIONS, modules_by_name


class FeatureLayer(NamedTuple):
    """Where features and logits come from."""

    name: str  # in the model
    logits: bool  # whether the model returns its output; then its input are the features, else its pooled output

    def __str__(self) -> str:
        name = f"'{self.name}'" if self.name else "the model"
        if self.logits:
            return f"the input of {name} are the features, its output the logits"
        return f"the pooled maps of {name} are the features, as the model returns the output of no linear layer"


class SampleStatistics(NamedTuple):
    """Statistics of N samples; None if the model has no such layer, or none with one row per sample."""

    pixels: Tensor | None = None  # see `describe_pixels` `(N, S)`
    shape: tuple[int, ...] = ()  # of a sample
    features: Tensor | None = None  # `(N, D)`
    logits: Tensor | None = None  # `(N, classes)`, one number for two classes
    class_names: tuple[str, ...] = ()  # if the data set names its classes
    feature_layer: FeatureLayer | None = None
    images: Tensor | None = None  # small ones, see `shrink_images` `(N, channels, height, width)`

    def select(self, samples: Any) -> SampleStatistics:
        """Select samples by an index."""
        return self._each(lambda tensor: tensor[samples])

    def finite_rows(self, count: int) -> Tensor:
        """Return which of `count` samples have finite pixels, features and logits `(count,)`."""
        finite = torch.ones(count, dtype=torch.bool, device="cpu")
        for part in (self.pixels, self.features, self.logits):
            if part is not None:
                finite &= part.sum(1).isfinite()  # ten times as quick as one number at a time
        return finite

    def _each(self, change: Callable[[Tensor], Tensor | None]) -> SampleStatistics:
        tensors = self.pixels, self.features, self.logits, self.images
        pixels, features, logits, images = (None if tensor is None else change(tensor) for tensor in tensors)
        return self._replace(pixels=pixels, features=features, logits=logits, images=images)

    @staticmethod
    def join(parts: Sequence[SampleStatistics]) -> SampleStatistics:
        """Join the statistics of several parts; those that a part lacks, or has in another shape, become None."""
        pixels, shapes, features, logits, names, heads, images = zip(*parts, strict=True)
        same_shape = len({*shapes}) == 1
        joined = join_known_tensors(pixels) if same_shape else None, shapes[0] if same_shape else ()
        outputs = join_known_tensors(features), join_known_tensors(logits)
        return SampleStatistics(*joined, *outputs, names[0], heads[0], join_known_tensors(images))


def join_known_tensors(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Join tensors; None if one is missing, they differ in shape or there are none."""
    present = [tensor for tensor in tensors if tensor is not None]
    alike = len(present) == len(tensors) and len({tensor.shape[1:] for tensor in present}) == 1
    return (torch.cat(present) if len(present) > 1 else present[0]) if alike else None


class SampleCapture:
    """Takes `SampleStatistics` while a model runs; without a model it takes nothing.

    The first pass finds the layer that gives features: the linear layer whose output the model returns, or the 1x1
    convolution of which it returns the pooled output, as logits or as probabilities. Without one, features are the
    pooled maps of the last convolution. If only parts of a LightningModule are called, the last one that returns such
    an output counts. In a pass, the first call of each module counts, as others may run the model meanwhile.
    """

    def __init__(
        self,
        model: nn.Module | None,
        *,
        describe: Callable[[Tensor], Tensor | None] | None = None,
        feature_layer: FeatureLayer | None = None,
        class_names: tuple[str, ...] = (),
        keep_images: bool = False,
    ) -> None:
        self._model, self._keep_images = model, keep_images
        self._describe = describe  # computes statistics of the first convolution's input, as the network sees images
        self._passes: list[SampleStatistics] = []
        self._current = SampleStatistics()
        self._names: dict[nn.Module, str] = {}
        self._linear: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # input and output of each linear layer called
        self._maps: dict[nn.Module, list[Tensor]] = {}  # of each convolution called in this pass, see `_take_maps`
        self._settled = False  # whether the model itself has returned the logits in this pass
        self.feature_layer = feature_layer
        self.class_names = class_names  # if the data set names its classes
        self.problem: str | None = None  # why nothing could be taken

    @property
    def notes(self) -> dict[str, str]:
        """Why samples have no scores, if nothing could be taken."""
        return {} if self.problem is None else {"views": f"Samples are not scored: {self.problem}."}

    @property
    def hooks(self) -> list[tuple[nn.Module, SampleCapture, Callable[..., None]]]:
        """The modules to hook in the next pass, this capture, and the forward hook of each, for `hooked`."""
        if self._model is None:
            return []
        self._names = {module: name for name, module in modules_by_name(self._model).items()}
        modules = list(self._names)
        convolutions = [module for module in modules if isinstance(module, CONVOLUTIONS)]
        hooks: list[tuple[nn.Module, Callable[..., None]]] = []
        if self._describe is not None:
            hooks += [(module, self._take_pixels) for module in convolutions]
        if self.feature_layer is not None:
            modules = [module for module, name in self._names.items() if name == self.feature_layer.name]
        hooks += [(module, self._take_maps) for module in modules if isinstance(module, CONVOLUTIONS)]
        hooks += [(module, self._take_linear) for module in modules if isinstance(module, nn.Linear)]
        if self.feature_layer is None or self.feature_layer.logits:
            outer = *self._model.children(), self._model
            hooks += [(module, self._find_head) for module in outer if not isinstance(module, torch.jit.ScriptModule)]
        return [(module, self, take) for module, take in hooks]

    def take_images(self, images: Tensor) -> None:
        """Keep small copies of the images of this pass, if they are wanted and can be drawn."""
        if self._keep_images and images.ndim in (4, 5) and images.numel():
            # Copies, as the model may change its input in place.
            self._current = self._current._replace(images=shrink_images(images, SIDE).clone())

    def end_pass(self, count: int, room: int = sys.maxsize) -> None:
        """Keep the statistics of one pass of `count` samples, those of the first `room`."""
        if self._current.features is None and self._maps and not (self.feature_layer and self.feature_layer.logits):
            last, (_, pooled, _) = next(reversed(self._maps.items()))
            self._set_features(last, pooled, None)
        if count and room > 0:
            self._passes.append(self._current.select(slice(room)))
        self._current = SampleStatistics()
        self._linear.clear()
        self._maps.clear()
        self._settled = False

    def collected(self, samples: int) -> SampleStatistics:
        """Return the statistics of all samples, on the CPU; None for those with more or fewer rows."""
        if not self._passes or self.problem is not None:
            return SampleStatistics()
        joined = SampleStatistics.join(self._passes)._replace(class_names=self.class_names)
        return joined._each(lambda tensor: tensor.cpu() if len(tensor) == samples else None)

    def _take_pixels(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._describe is None or self._current.shape or not args:
            return
        images = args[0].detach()
        self._current = self._current._replace(pixels=self._describe(images), shape=tuple(images.shape[1:]))

    def _take_linear(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._linear and args and args[0].ndim <= 2:
            # Copies, as a later activation may change them in place.
            features, logits = (tensor.detach().to(torch.float32, copy=True) for tensor in (args[0], output))
            self._linear[module] = features.view(-1, features.shape[-1]), logits.view(-1, logits.shape[-1])

    def _take_maps(self, module: nn.Module, args: Any, output: Any) -> None:
        """Average the input of a convolution over each map, its output, and its output after a ReLU."""
        if module not in self._maps and args and isinstance(output, Tensor) and output.ndim > 2:
            maps = args[0], output, output.clamp(min=0)
            self._maps[module] = [tensor.detach().float().flatten(2).mean(2) for tensor in maps]

    def _find_head(self, module: nn.Module, args: Any, output: Any) -> None:
        """Find the layer that gives features among those that were called."""
        if self._settled or not (self._linear or self._maps):
            return
        candidates = [(layer, *pair) for layer, pair in self._linear.items()]
        convolution, maps = next(reversed(self._maps.items()), (None, []))
        if isinstance(convolution, CONVOLUTIONS) and {*convolution.kernel_size} == {1}:
            features, *outputs = maps
            candidates += [(convolution, features, logits) for logits in outputs]
        returned = [tensor for _, tensor in named_tensors(output)]
        for tensor in returned:
            for layer, features, logits in reversed(candidates):
                if _returns_logits(tensor.detach(), logits):
                    self._set_features(layer, features, logits)
                    self._settled = module is self._model
                    return
        # A result of the model itself replaces those of its parts. A loss is none: in several processes, Lightning
        # calls the module for its `validation_step`.
        taken = self._current.features
        floats = [tensor for tensor in returned if tensor.is_floating_point() and tensor.ndim]
        if module is self._model and taken is not None and len(taken) in map(len, floats):
            self.feature_layer = None
            self._current = self._current._replace(features=None, logits=None, feature_layer=None)

    def _set_features(self, layer: nn.Module, features: Tensor, logits: Tensor | None) -> None:
        self.feature_layer = FeatureLayer(self._names[layer], logits is not None)
        self._current = self._current._replace(features=features, logits=logits, feature_layer=self.feature_layer)


def _returns_logits(returned: Tensor, logits: Tensor) -> bool:
    """Return whether a tensor holds the logits `(n, C)`, or their probabilities or logarithms of these."""
    if returned.numel() != logits.numel() or not returned.is_floating_point():
        return False
    returned = returned.to(logits).reshape(logits.shape)
    made = (logits, logits.sigmoid()) if logits.shape[1] == 1 else (logits, logits.log_softmax(1), logits.softmax(1))
    # Equality is quicker to tell, and nearly always enough.
    return any(torch.equal(returned, one) or torch.allclose(returned, one, 1e-2, 1e-4, equal_nan=True) for one in made)
