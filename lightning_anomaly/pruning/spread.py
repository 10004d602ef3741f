"""How far the zeros of filters reach."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_anomaly.pruning.norms import NormFlow, channel_count, fed_name, is_norm, passes_zeros

__all__ = ["End", "spread_zeros"]

_Places = dict[int, list[int]] | None  # where each channel of a layer is in another one; None: in its own place


class End(NamedTuple):
    """Where zeros end: a norm that takes them, the layer before it, and whether they were followed to there."""

    layer: str
    norm: str
    followed: bool


def spread_zeros(
    flow: NormFlow, filters: Mapping[str, Iterable[int]], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, set[int]], list[End]]:
    """Follows zeros from filters to all that is 0 because of them, once the norms on the way are masked.

    Args:
        flow: What a pass of the model showed.
        filters: `{convolution: [filter, ...]}` that are 0.
        modules: The layers of the model by name.

    Returns:
        `{layer: {channel, ...}}` of all that is 0, `filters` included; and the norms where this ends, as they depend on
        other channels or inputs too or are behind operations that could not be followed.

    Raises:
        ValueError: The flow is not that of the model.
    """
    forth: dict[str, list[tuple[str, _Places]]] = {}
    back: dict[str, list[tuple[str, _Places]]] = {}
    for layer, fed in ((layer, fed) for layer, feds in flow.norms.items() for fed in feds):
        name = fed_name(fed)
        forth.setdefault(layer, []).append((name, None if fed == name else _places(fed[1], fed[2])))
        back.setdefault(name, []).append((layer, None if fed == name else _places(fed[2], fed[1])))
    zeros = {layer: set(channels) for layer, channels in filters.items() if layer in modules}  # others are gone
    ends: dict[End, None] = {}
    checked: set[str] = set()
    todo = deque((layer, channel) for layer, channels in zeros.items() for channel in channels)
    while todo:
        layer, channel = todo.popleft()
        if layer not in checked:
            checked.add(layer)
            for name, places in forth.get(layer, ()):
                _check(modules, layer, name, places)
        ends |= dict.fromkeys(End(layer, norm, followed=False) for norm in flow.lost.get(layer, ()))
        for name, places in forth.get(layer, ()):
            module = modules[name]
            for there in _at(places, channel):
                alone = name not in flow.shared
                whole = all(zeros.get(other, set()).issuperset(_at(found, there)) for other, found in back[name])
                if whole and alone and passes_zeros(module):
                    new = {*_outputs(module, there)} - zeros.setdefault(name, set())
                    zeros[name] |= new
                    todo += [(name, channel) for channel in new]
                elif (whole or not alone) and is_norm(module):
                    ends[End(layer, name, followed=True)] = None
    return zeros, list(ends)


def _places(channels: Any, there: Any) -> _Places:
    places: dict[int, list[int]] = {}
    for channel, place in zip(channels, there, strict=True):
        places.setdefault(channel, []).append(place)
    return places


def _at(places: _Places, channel: int) -> Sequence[int]:
    return [channel] if places is None else places.get(channel, ())


def _outputs(module: Any, there: int) -> Iterable[int]:
    """The channels of a layer that are 0 if one of its inputs is: of a convolution, those of the group."""
    size = module.out_channels // module.groups if isinstance(module, _ConvNd) else 1
    return range(there * size, (there + 1) * size)


def _check(modules: Mapping[str, nn.Module], layer: str, name: str, places: _Places) -> None:
    module, count = modules.get(name), channel_count(modules[layer]) or 0
    if module is not None and (is_norm(module) or passes_zeros(module)):
        inputs = module.groups if isinstance(module, _ConvNd) else channel_count(module)
        if places is None:
            fits = inputs in (None, count)
        else:
            there = {place for found in places.values() for place in found}
            fits = places.keys() <= {*range(count)} and (inputs is None or there <= {*range(inputs)})
        if fits:
            return
    raise ValueError(
        f"Parameter `flow` should name normalisation layers of the model, of {count} channels behind layer "
        f"'{layer}'. Found '{name}'."
    )
