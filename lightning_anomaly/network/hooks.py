"""Take maps out of a model by hooks while it runs, in evaluation mode and without compiled graphs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly._internal.random_state import isolated_torch_state
from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.layer_maps import LayerMaps, summarize_maps
from lightning_anomaly.network.layers import CONVOLUTIONS

_Hook = tuple[nn.Module, LayerMaps | SampleCapture, Callable[..., None]]

_PIECE = 2**22  # values pooled at a time, 16 MiB in float32


@contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Switch a model to evaluation mode and yield its modules; restore their flags and torch's random state at the end.

    Every run of a model by this package happens inside.
    """
    with isolated_torch_state():
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


_eager_users = 0  # counted, as nested stances that exit out of order would restore the wrong one
_eager_stance = ExitStack()


@contextmanager
def compiled_models_eager() -> Iterator[None]:
    """Run compiled models eagerly inside, as they ignore hooks that were added after their compilation."""
    global _eager_users
    if "torch._dynamo" not in sys.modules:  # no model is compiled
        yield
        return
    if _eager_users == 0:
        _eager_stance.enter_context(torch.compiler.set_stance("force_eager"))
    _eager_users += 1
    try:
        yield
    finally:
        _eager_users -= 1
        if _eager_users == 0:
            _eager_stance.close()


@contextmanager
def hooked(hooks: Iterable[_Hook]) -> Iterator[None]:
    """Call functions as forward hooks of modules inside; an exception of one becomes its owner's `problem`."""
    with compiled_models_eager(), ExitStack() as stack:
        for module, owner, take in hooks:
            stack.callback(module.register_forward_hook(partial(_take_safely, owner, take)).remove)
        yield


@dataclass(eq=False)
class MapCapture:
    """Takes the maps of chosen layers out of a model while it runs, as a context manager around each forward pass.

    Passes add up until `limit` samples were seen. The first call of a layer in a pass counts. Maps `(n, F, ...)` are
    reduced by `summary`; without it, pooled maps, their sparsity and their extremes before rectification are taken.
    """

    layers: dict[str, nn.Module]  # by name
    _: KW_ONLY
    limit: int = sys.maxsize  # samples
    rectify: bool = True  # before pooling
    max_map_side: int = 8  # see `pool_maps`
    summary: Callable[[Tensor], Tensor] | None = None
    samples: SampleCapture = field(default_factory=lambda: SampleCapture(None))  # which is hooked together with them

    def __post_init__(self) -> None:
        self._hooks = ExitStack()
        self._called: dict[str, int] = {}  # number of maps of each layer called in this pass
        self._totals: Counter[str] = Counter()  # number of maps in all passes, also beyond the limit
        self._samples = 0  # in all passes
        self.maps = {name: LayerMaps() for name in self.layers}

    @property
    def full(self) -> bool:
        """Whether `limit` samples were seen."""
        return self._samples >= self.limit

    def attach(self) -> None:
        """Put the hooks on the model. `remove` must follow, also after an exception."""
        self.remove()
        layers = [(layer, self.maps[name], partial(self._take_output, name)) for name, layer in self.layers.items()]
        self._hooks.enter_context(hooked([*layers, *self.samples.hooks]))

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        self._hooks.close()
        counts = Counter(count for count in self._called.values() if count)
        self._totals.update(self._called)
        self._called.clear()
        count = counts.most_common(1)[0][0] if counts else 0
        self.samples.end_pass(count, self.limit - self._samples)
        # A pass has as many samples as most layers gave maps. Others give maps of frames or regions, or are skipped by
        # some passes. Once all layers are at the limit, their counts are equal, so the problem is recorded here.
        if counts and self.limit < sys.maxsize:
            self._samples += count
            for name, layer in self.maps.items():
                total = self._totals[name]
                if total not in (0, self._samples) and layer.problem is None:
                    layer.problem = f"it gave {total} maps where most layers gave {self._samples}"

    def __enter__(self) -> MapCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _take_output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if name in self._called:
            return
        self._called[name] = 0
        layer = self.maps[name]
        layer.problem = layer.problem or _output_problem(layer, module, output)
        if layer.problem is not None or output.numel() == 0:
            return
        self._called[name] = len(output)
        maps = output.detach()[: self.limit - layer.count]
        layer.size = tuple(maps.shape[2:])
        layer.count += len(maps)
        if not len(maps):
            return
        dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
        # In pieces, so that a large output needs little more memory.
        for piece in torch.split(maps, max(1, _PIECE // output[0].numel())):
            values = piece.to(dtype)
            if self.summary is None:
                pooled, extremes, zeros = summarize_maps(values, self.max_map_side, self.rectify)
                layer.batches.append(pooled)
                layer.extremes.append(extremes)
                layer.zeros = zeros if layer.zeros is None else layer.zeros + zeros
            else:
                layer.batches.append(self.summary(values))


def _take_safely(owner: LayerMaps | SampleCapture, take: Callable[..., None], *args: Any) -> None:
    """Turn an exception in a hook into the owner's `problem`, so that the forward pass goes on."""
    try:
        take(*args)
    except Exception as error:
        owner.problem = f"a hook failed with {error!r}"


def _output_problem(layer: LayerMaps, module: nn.Module, output: Any) -> str | None:
    """Return why the output of a layer cannot be added to its maps; None if it can."""
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not a tensor"
    axes = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else None
    if not 2 <= output.ndim <= 5 or axes not in (None, output.ndim - 2):
        return f"its output has shape {tuple(output.shape)}, not (samples, filters, ...)"
    if not output.is_floating_point():
        return f"its output has type {output.dtype}"
    if output.numel() == 0 or not layer.batches:
        return None
    before, now = (layer.batches[0].shape[1], *(layer.size or ())), tuple(output.shape[1:])
    return None if now == before else f"its shape changes, from {before} to {now}"
