"""Take the maps of layers by hooks while a model runs, without compiled graphs; pool and keep them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_anomaly.network.features import SampleCapture
from lightning_anomaly.network.layers import CONVOLUTIONS
from lightning_anomaly.network.module_calls import seen_calls

_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_Hook = tuple[nn.Module, "LayerMaps | SampleCapture", Callable[..., None]]
_PIECE = 2**22  # values pooled at a time, 16 MiB in float32


def pool_maps(maps: Tensor, max_side: int) -> Tensor:
    """Average-pool maps `(N, F, ...)` in the smallest windows that leave no side above `max_side` (pixels).

    Maps with one or three axes are pooled to at most as many pixels as a square of this side.
    """
    windows = _pooling_windows(maps, max_side)
    if max(windows, default=1) == 1:
        return maps
    pooled: Tensor = _POOLS[len(windows)](maps, windows, ceil_mode=True, count_include_pad=False)
    return pooled


def _pooling_windows(maps: Tensor, max_side: int) -> list[int]:
    """Return the sides of the windows that `pool_maps` averages."""
    sizes = maps.shape[2:]
    side = max(1, int(max_side ** (2 / max(1, len(sizes))) + 1e-9))
    return [-(-size // side) for size in sizes]


def summarize_maps(maps: Tensor, max_side: int, rectify: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce maps `(N, F, ...)`, float32 or float64, to pooled maps, extremes `(N, F, 2)` and numbers of zeros `(F,)`.

    The extremes are the largest and smallest value before rectification, not both finite if any value is not; zeros are
    values of at most 0. All are copies. A map with minus infinity, which rectification would hide, becomes NaN.
    """
    if maps.device.type == "cpu":
        from lightning_anomaly.network.map_loops import reduce_and_pool  # late, as numba takes long to import

        return reduce_and_pool(maps, _pooling_windows(maps, max_side), rectify)
    pixels = maps[..., None].flatten(2)
    extremes = torch.stack([pixels.amax(2), pixels.amin(2)], 2)
    zeros = (pixels <= 0).sum((0, 2))
    maps = maps.clamp(min=0) if rectify else maps.clone()
    if rectify:
        maps[extremes[..., 1] == -torch.inf] = torch.nan
    return pool_maps(maps, max_side), extremes, zeros


def join_batches(batches: Sequence[Tensor]) -> Tensor:
    """Join tensors along the first axis; a single one is returned itself."""
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))


@dataclass
class LayerMaps:
    """The maps of one layer, batch by batch, on the device where the model ran."""

    batches: list[Tensor] = field(default_factory=list)  # pooled `(n, F, ...)`, or their summary
    count: int = 0  # samples
    size: tuple[int, ...] | None = None  # sides of a map before pooling (pixels), None before the first call
    zeros: Tensor | None = None  # number of each filter's values that are at most 0 before pooling `(F,)`
    problem: str | None = None  # why maps could not be taken
    extremes: list[Tensor] = field(default_factory=list)  # of these maps before rectification `(n, F, 2)`

    @property
    def sparsity(self) -> Tensor:
        """Fraction of each filter's values that are at most 0 `(F,)`, on the CPU."""
        assert self.zeros is not None
        assert self.size is not None
        return self.zeros.cpu().double() / (self.count * math.prod(self.size))

    @property
    def maps(self) -> Tensor:
        """All maps `(N, F, ...)`."""
        return join_batches(self.batches)

    @property
    def nonfinite(self) -> Tensor:
        """Whether each sample's maps are NaN or infinite in a filter whose maps of most samples are finite `(N,)`."""
        broken = ~join_batches(self.extremes).isfinite().all(2)
        return broken[:, 2 * broken.sum(0) < len(broken)].any(1).cpu()

    def select(self, filters: slice) -> LayerMaps:
        """Select some filters; their batches are joined."""
        maps, extremes = ([batch[:, filters] for batch in kept] for kept in (self.batches, self.extremes))
        zeros = None if self.zeros is None else self.zeros[filters]
        return LayerMaps([join_batches(maps)], self.count, self.size, zeros, extremes=[join_batches(extremes)])

    def rows(self) -> Tensor:
        """Return the V values of each map, and its extremes, filter by filter `(F, N, V + 2)`."""
        pixels, extremes = self.maps[..., None].flatten(2), join_batches(self.extremes)
        return torch.cat([pixels.transpose(0, 1), extremes.transpose(0, 1)], 2)


def most_samples(maps: Mapping[str, LayerMaps]) -> int:
    """Return the number of maps that most layers without a problem gave; 0 if none gave any."""
    counts = Counter(layer.count for layer in maps.values() if layer.count and layer.problem is None)
    return counts.most_common(1)[0][0] if counts else 0


def usable_layers(
    maps: Mapping[str, LayerMaps], expected: int | None = None
) -> tuple[dict[str, LayerMaps], int, dict[str, str]]:
    """Return the layers with `expected` maps, or as many as most gave, that number, and notes on the other layers."""
    n_samples = most_samples(maps) if expected is None else expected
    usable: dict[str, LayerMaps] = {}
    notes: dict[str, str] = {}
    for name, layer in maps.items():
        problem = layer.problem or (None if layer.batches else "it was never called")
        if problem is None and layer.count != n_samples:
            others = "most layers gave" if expected is None else "the samples are"
            problem = f"it gave {layer.count} maps where {others} {n_samples}"
        if problem:
            notes[f"{name} left out"] = f"Layer '{name}' is left out of the analysis: {problem}."
        else:
            usable[name] = layer
    return usable, n_samples, notes


@contextmanager
def hooked(hooks: Iterable[_Hook]) -> Iterator[None]:
    """Call functions after modules inside; an exception of one becomes its owner's `problem`."""
    takers: dict[nn.Module, list[tuple[Any, Callable[..., None]]]] = {}
    for module, owner, take in hooks:
        takers.setdefault(module, []).append((owner, take))

    def take_all(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for owner, take in takers.get(module, ()):
            _take_safely(owner, take, module, args, output)

    with seen_calls(take_all):
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
