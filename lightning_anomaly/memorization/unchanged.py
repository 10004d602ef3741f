"""Repeat a comparison from the last layer on, while nothing before it changes, as in a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.images.image_source import ImageSource
from lightning_anomaly.memorization.confidence import ExpectedErrors
from lightning_anomaly.memorization.memorization_report import MemorizationReport
from lightning_anomaly.network.features import SampleStatistics
from lightning_anomaly.network.forward import copy_for_model, isolated_calls
from lightning_anomaly.network.hooks import compiled_models_eager
from lightning_anomaly.network.layers import modules_by_name, state_hash

Call = Callable[[Tensor], Any]


class BeforeLastLayer:
    """What the last comparison of some images computed before the last layer of a model.

    Attributes:
        report: What it found of the filters.
        features: The input of the last layer, of all images `(N, D)`.
    """

    report: MemorizationReport
    features: Tensor

    def __init__(self) -> None:
        self._layer: nn.Module | None = None  # the last one
        self._sizes: Sequence[int] = ()  # of batches, on which the last digits depend
        self._state = ""  # of the model without that layer
        self._changed = False  # then it does again, most likely
        self._of_two: Tensor  # features, which show if `forward` does something else, by an attribute for example

    def keep(
        self,
        model: nn.Module,
        call: Call | None,
        images: ImageSource,
        samples: SampleStatistics,
        output: ExpectedErrors,
        report: MemorizationReport,
    ) -> None:
        """Keep the first comparison, if a linear layer turns the features into just this output."""
        if samples.features is None or samples.feature_layer is None or output.logits is None:
            return
        layer = modules_by_name(model)[samples.feature_layer.name]
        if self._changed or not isinstance(layer, nn.Linear):
            return
        self.features, self.report, self._sizes = samples.features, report, output.sizes
        if torch.equal(torch.cat(self._outputs(layer)).float().cpu(), output.logits):
            self._layer, self._state = layer, state_hash(model, without=layer)
            self._of_two = _features_of_two(model, call, images, layer)

    def outputs(self, model: nn.Module, call: Call | None, images: ImageSource) -> list[Tensor]:
        """Compute the model's outputs for all batches; none if more than the last layer may have changed."""
        layer = self._layer
        if layer is None or self._changed:
            return []
        same = layer in {*model.modules()} and self._state == state_hash(model, without=layer)
        self._changed = not (same and torch.equal(self._of_two, _features_of_two(model, call, images, layer)))
        return [] if self._changed else self._outputs(layer)

    def _outputs(self, layer: nn.Module) -> list[Tensor]:
        with isolated_calls(layer) as forward:
            return [forward(copy_for_model(batch, layer)) for batch in torch.split(self.features, [*self._sizes])]


def _features_of_two(model: nn.Module, call: Call | None, images: ImageSource, layer: nn.Module) -> Tensor:
    """Run the first two images and return what the layer is given, empty if it is not called."""
    taken = [torch.empty(0)]
    hook = layer.register_forward_hook(lambda _, args, __: taken.append(args[0].detach().clone()))
    with hook, compiled_models_eager(), isolated_calls(model, call) as forward:
        for _, batch in images.batches(images.positions[:2]):
            forward(copy_for_model(batch, model))
    return taken[-1]
