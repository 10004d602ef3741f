"""How maps get out of a model while it runs: hooks on and off, evaluation mode, compiled models run eagerly."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_anomaly.capture.maps import EXTREMES, LayerMaps, Pieces, map_statistics, pool_maps

__all__ = [
    "Hook",
    "MapCapture",
    "compiled_models_eager",
    "evaluating",
    "keeping_random_state",
    "only_recorded",
    "taken_alone",
    "taking_alone",
]

_PIECE = 2**22  # values pooled at a time, 16 MiB in float32


@contextmanager
def keeping_random_state(devices: Iterable[Any]) -> Iterator[None]:
    """Gives the states of the random numbers of torch, on these GPUs too, NumPy and Python back at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with every module's own flag and the global random state given back at the end."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:  # not `model.eval()`, which a model may override
            module.training = False
        with keeping_random_state(devices):
            yield
    finally:
        for module, training in flags:
            module.training = training


_eager_users = 0
_eager_stance = ExitStack()


@contextmanager
def compiled_models_eager() -> Iterator[None]:
    """Runs compiled models eagerly inside, as they ignore hooks that came later.

    Several uses may overlap and end in any order: the first one sets torch's stance, the last one gives it back. A
    stance of each one's own would be given back in the wrong order, and leave the process eager for good.
    """
    global _eager_users
    # Without dynamo loaded there is no compiled model.
    if "torch._dynamo" not in sys.modules:
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


class _Thread(threading.local):
    """Another thread may run another model meanwhile."""

    only: MapCapture | None = None


_this_thread = _Thread()


@contextmanager
def taking_alone(capture: MapCapture) -> Iterator[None]:
    """No other capture takes maps inside: for whoever runs a model while somebody else's hooks may be on it."""
    before, _this_thread.only = _this_thread.only, capture
    try:
        yield
    finally:
        _this_thread.only = before


def taken_alone() -> bool:
    """Whether somebody runs a model inside of `taking_alone`, on samples of their own."""
    return _this_thread.only is not None


def only_recorded() -> bool:
    """Whether what runs is recorded, or runs on tensors without values: traced, exported or transformed."""
    kinds = torch._C._TorchDispatchModeKey
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY))
    )


class Hook:
    """A hook that keeps out of what a user may do with its module meanwhile.

    Copied or pickled with the module it is one that does nothing, and where the module is traced, exported or
    transformed (`torch.func`) nothing of it is seen.

    Args:
        function: What the hook does.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Does it."""
        if not only_recorded():
            self._function(*args)

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")  # takes anything and gives None, wherever it is loaded


class MapCapture:
    """Takes the maps of chosen layers out of a model while somebody else runs it.

    Use it as a context manager around a forward pass, or `attach` and `remove` it from two places; the maps of several
    passes add up, until `limit` samples were seen. Hooks are only on the model in between. If a layer is called several
    times in one pass, its first call counts.

    Args:
        layers: The modules to watch, by name.
        limit: Number of samples to take; None takes all.
        rectify: Whether negative values are set to zero, before pooling; a summary sees them.
        max_map_side: See `pool_maps`.
        summary: What is kept of maps `(n, F, ...)` in place of the pooled ones, a tensor of its own; None keeps those,
            and statistics of the maps before they are rectified.
        taking: Asked at each call of a layer whether it is to count.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        *,
        limit: int | None = None,
        rectify: bool = True,
        max_map_side: int = 8,
        summary: Callable[[Tensor], Tensor] | None = None,
        taking: Callable[[], bool] = lambda: True,
    ) -> None:
        self._layers = layers
        self._limit = sys.maxsize if limit is None else limit
        self._rectify = rectify
        self._summary = summary or (lambda maps: pool_maps(maps, max_map_side))
        self._for_analysis = summary is None
        self._hooks = ExitStack()
        self._taking = taking
        self._called: dict[str, int] = {}  # in this pass, and how many maps they gave
        self._samples = 0  # that were seen, up to the limit
        self._kept = {name: (Pieces(), Pieces()) for name in layers}
        self.maps = {name: LayerMaps(maps, statistics=statistics) for name, (maps, statistics) in self._kept.items()}

    @property
    def full(self) -> bool:
        """Whether `limit` samples were seen, so that another pass is not needed."""
        return self._samples >= self._limit

    def attach(self) -> None:
        """Puts the hooks on. `remove` must follow, also after an exception."""
        self.remove()
        with ExitStack() as hooks:
            hooks.enter_context(compiled_models_eager())
            for name, module in self._layers.items():
                hooks.callback(module.register_forward_hook(Hook(self._hook(name))).remove)
            self._hooks = hooks.pop_all()

    def remove(self) -> None:
        """Takes the hooks off; a second call does nothing.

        If there is a limit, the pass has as many samples as most layers gave maps. A layer that gave another number, of
        frames or regions, or as some passes leave it out, gets its `problem` now: at the end it might have `limit` too.
        """
        self._hooks.close()
        counts = Counter(count for count in self._called.values() if count)
        if counts and self._limit < sys.maxsize:
            usual = counts.most_common(1)[0][0]
            self._samples = min(self._limit, self._samples + usual)
            for name, layer in self.maps.items():
                found, expected = self._called.get(name, 0), usual
                if found in (0, usual):
                    found, expected = layer.count, self._samples
                if found not in (0, expected) and layer.problem is None:
                    layer.problem = f"it gave {found} maps where most layers gave {expected}"
        self._called.clear()

    def __enter__(self) -> MapCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            if name not in self._called and _this_thread.only in (None, self) and self._taking():
                self._called[name] = 0
                try:
                    self._take(name, module, output)
                except Exception as error:  # the forward pass is not ours to break
                    self.maps[name].problem = f"taking its maps failed with {error!r}"

        return take

    def _take(self, name: str, module: nn.Module, output: Any) -> None:
        layer, (kept, statistics) = self.maps[name], self._kept[name]
        if layer.problem is not None:
            return
        full = layer.count >= self._limit
        layer.problem = None if full else _problem(layer, module, output)
        if layer.problem is not None or output.numel() == 0:
            return
        self._called[name] = len(output)
        if full:
            return
        most = self._limit - layer.count
        maps = output.detach()[:most]
        layer.size = tuple(maps.shape[2:])
        layer.count += len(maps)
        # In pieces, so that the copy of a large output is small. For an analysis it is a copy, which is changed and
        # may be kept; a summary makes one of its own: the model may change its output in place.
        dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
        for piece in torch.split(maps, max(1, _PIECE // max(1, maps[0].numel()))):
            copy = piece.to(dtype, copy=self._for_analysis)
            if self._for_analysis:
                of_maps = map_statistics(copy)
                statistics.keep(of_maps, most)
                if self._rectify:  # a map with minus infinity is not finite afterwards either
                    infinite = of_maps[:, :, EXTREMES].isinf().any(2)
                    floor = torch.where(infinite, torch.nan, copy.new_zeros(()))
                    torch.maximum(copy, floor.reshape(*floor.shape, *[1] * (copy.ndim - 2)), out=copy)
                zeros = (copy <= 0).transpose(0, 1).flatten(1).sum(1)
                layer.zeros = zeros if layer.zeros is None else layer.zeros + zeros
            kept.keep(self._summary(copy), most)
            most -= len(piece)


def _problem(layer: LayerMaps, module: nn.Module, output: Any) -> str | None:
    """Why an output of a layer is nothing that can be taken, beside what is there of it; None if it can."""
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not a tensor"
    axes = len(module.kernel_size) if isinstance(module, _ConvNd) else None
    if not 2 <= output.ndim <= 5 or axes not in (None, output.ndim - 2):
        return f"its output has shape {tuple(output.shape)}, not (samples, filters, ...)"
    if not output.is_floating_point():
        return f"its output has type {output.dtype}"
    if output.numel() == 0:
        return None
    if layer.batches and output.shape[1] != layer.batches[0].shape[1]:
        return f"its number of filters changes, from {layer.batches[0].shape[1]} to {output.shape[1]}"
    if layer.size is not None and tuple(output.shape[2:]) != layer.size:
        return f"the size of its maps changes, from {layer.size} to {tuple(output.shape[2:])}"
    return None
