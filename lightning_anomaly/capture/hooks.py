"""Hooks that take maps out of a model while it runs, evaluation mode, and compiled models run eagerly."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_anomaly.capture.layers import CONVOLUTIONS
from lightning_anomaly.capture.maps import SMALLEST, LayerMaps, keep_rows, map_statistics, pool_maps
from lightning_anomaly.capture.samples import SampleCapture
from lightning_anomaly.images.random_state import isolated_random_state
from lightning_anomaly.notes import Note

_PIECE = 2**22  # values pooled at a time, 16 MiB in float32


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own flag and the global random state are restored at the end."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:  # not `model.eval()`, which a model may override
            module.training = False
        with isolated_random_state():
            yield
    finally:
        for module, training in flags:
            module.training = training


_eager_lock = threading.Lock()
_eager_users = 0
_eager_stance = ExitStack()


@contextmanager
def compiled_models_eager() -> Iterator[None]:
    """Run compiled models eagerly inside, as they ignore hooks that were added later.

    Reference-counted: nested stances that exit out of order would restore the wrong one.
    """
    global _eager_users
    if "torch._dynamo" not in sys.modules:  # then there is no compiled model
        yield
        return
    with _eager_lock:
        if _eager_users == 0:
            _eager_stance.enter_context(torch.compiler.set_stance("force_eager"))
        _eager_users += 1
    try:
        yield
    finally:
        with _eager_lock:
            _eager_users -= 1
            if _eager_users == 0:
                _eager_stance.close()


@dataclass(eq=False)
class MapCapture:
    """Takes the maps of chosen layers out of a model while it runs.

    Use it as a context manager around a forward pass, or call `attach` and `remove` from two places; the maps of
    several passes add up, until `limit` samples were seen. Hooks are only on the model in between. If a layer is called
    several times in one pass, its first call counts.

    Of maps `(n, F, ...)` the result of `summary` is kept; without one, pooled maps, their sparsity, and statistics
    from before they are rectified.
    """

    layers: dict[str, nn.Module]  # by name
    _: KW_ONLY
    limit: int = sys.maxsize  # samples
    rectify: bool = True  # before pooling
    max_map_side: int = 8  # see `pool_maps`
    summary: Callable[[Tensor], Tensor] | None = None
    model: InitVar[nn.Module | None] = None  # if its samples are to be described too, see `SampleCapture`

    def __post_init__(self, model: nn.Module | None) -> None:
        self.samples = SampleCapture(model, self.limit)
        self._hooks = ExitStack()
        self._called: dict[str, int] = {}  # in this pass, and how many maps they gave
        self._given: Counter[str] = Counter()  # maps in all passes, also those beyond the limit
        self._samples = 0  # in all passes
        self.maps = {name: LayerMaps() for name in self.layers}

    @property
    def full(self) -> bool:
        """Whether `limit` samples were seen, so that another pass is not needed."""
        return self._samples >= self.limit

    def attach(self) -> None:
        """Put the hooks on. `remove` must follow, also after an exception."""
        self.remove()
        with ExitStack() as hooks:
            hooks.enter_context(compiled_models_eager())
            for name, module in self.layers.items():
                hook = _guarded(self.maps[name], partial(self._take, name))
                hooks.callback(module.register_forward_hook(hook).remove)
            for module, take in self.samples.watched:
                hooks.callback(module.register_forward_hook(_guarded(self.samples, take)).remove)
            self._hooks = hooks.pop_all()

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing.

        If there is a limit, the pass has as many samples as most layers gave maps. A layer that has given another
        number by now, of frames or regions, or as some passes leave it out, cannot be told apart once all are at the
        limit, so its `problem` is set here.
        """
        self._hooks.close()
        counts = Counter(count for count in self._called.values() if count)
        self._given.update(self._called)
        self._called.clear()
        count = counts.most_common(1)[0][0] if counts else 0
        self.samples.end_pass(count)
        if counts and self.limit < sys.maxsize:
            self._samples += count
            for name, layer in self.maps.items():
                given = self._given[name]
                if given not in (0, self._samples) and layer.problem is None:
                    layer.problem = Note("it gave {} maps where most layers gave {}", given, self._samples)

    def __enter__(self) -> MapCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _take(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if name in self._called:
            return
        self._called[name] = 0
        layer = self.maps[name]
        layer.problem = layer.problem or _problem(layer, module, output)
        if layer.problem is not None or output.numel() == 0:
            return
        self._called[name] = len(output)
        room = self.limit - layer.count
        maps = output.detach()[:room]
        layer.size = tuple(maps.shape[2:])
        layer.count += len(maps)
        if not len(maps):
            return
        dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
        # In pieces, so that what is made of a large output on the way is small.
        for piece in torch.split(maps, max(1, _PIECE // output[0].numel())):
            values = piece.to(dtype)
            if self.summary is None:
                statistics = map_statistics(values)
                keep_rows(layer.statistics, statistics, room)
                # Three times as fast as to sum booleans, and exact: a piece has fewer values than float32 can count.
                zeros = (values <= 0).to(dtype).sum((0, *range(2, values.ndim))).long()
                if self.rectify:
                    values = values.clamp(min=0)
                    no_silence = statistics[..., SMALLEST] == -torch.inf
                    if no_silence.any():
                        values[no_silence] = torch.nan
                layer.zeros = zeros if layer.zeros is None else layer.zeros + zeros
                keep_rows(layer.batches, pool_maps(values, self.max_map_side), room)
            else:
                layer.batches.append(self.summary(values))
            room -= len(piece)


def _guarded(owner: LayerMaps | SampleCapture, take: Callable[..., None]) -> Callable[..., None]:
    """Keep an exception of a hook as the owner's `problem`, so that it does not break the forward pass."""

    def hook(*args: Any) -> None:
        try:
            take(*args)
        except Exception as error:
            owner.problem = f"a hook failed with {error!r}"

    return hook


def _problem(layer: LayerMaps, module: nn.Module, output: Any) -> str | None:
    """Why the output of a layer cannot be taken beside what is there of it; None if it can."""
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not a tensor"
    axes = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else None
    if not 2 <= output.ndim <= 5 or axes not in (None, output.ndim - 2):
        return Note("its output has shape {}, not (samples, filters, ...)", tuple(output.shape))
    if not output.is_floating_point():
        return f"its output has type {output.dtype}"
    if output.numel() == 0 or not layer.batches:
        return None
    before, now = (layer.batches[0].shape[1], *(layer.size or ())), tuple(output.shape[1:])
    return None if now == before else Note("its shape changes, from {} to {}", before, now)
