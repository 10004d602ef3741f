"""Which filters each place of a tensor is made of, followed through the operations of a forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Origin", "OriginTracker", "all_of", "is_followed"]

# A place of a tensor is 0 as soon as all of these are: channels of layers, each `(layer, channel)`. Without any it is
# always 0. `(layer, None)` is some channels of a layer, of whose zeros it is not known what becomes. None: the place is
# made of something else, too, and is not 0 whatever filters are.
Origin = frozenset[tuple[str, int | None]] | None

_Known = list[Tensor | None]  # origins of the places of several tensors, None for one of something else

_ELSE, _ZERO = 0, 1  # the numbers that None and the empty set have in every tracker
_MOST = 256  # channels in one origin: every sum may add some, and so many are not masked together

# Operations by their names in torch's dispatcher, without the underscores in front and behind.
_KEEP = {"clone", "contiguous", "dropout", "feature_dropout", "native_dropout", "to", "to_copy", "type_as"}
_KEEP |= {"prelu", "prelu_kernel", "rrelu", "rrelu_with_noise"}
_POINTWISE = {"elu", "hardswish", "hardtanh", "leaky_relu", "relu6"}  # of which not every torch says so itself
_RESHAPE = {"flatten", "reshape", "reshape_alias", "unflatten", "unsafe_view", "view"}
_MOVE = {"channel_shuffle", "flip", "index", "index_select", "pixel_shuffle", "pixel_unshuffle", "repeat", "roll"}
_WITHIN_MAPS = re.compile(r"(adaptive_)?(avg|max)_pool\dd(_with_indices)?|upsample_.*|(reflection|replication)_pad\dd")
_REDUCE = {"amax", "amin", "mean", "sum"}
_MIX = re.compile(r".*conv.*|linear|b?mm|(add|baddb)mm|matmul|einsum|scaled_dot_product.*|.*(lstm|gru|rnn).*")


class OriginTracker:
    """Follows origins from the tensors where they `start` to all that is made of these.

    It is shown all operations of a pass, see `watching_operations`. Only tensors that the pass itself keeps alive are
    remembered.
    """

    def __init__(self) -> None:
        self._origins: list[Origin] = [None, frozenset()]
        self._numbers: dict[Origin, int] = {None: _ELSE, frozenset(): _ZERO}
        # The origins of a tensor's places: their numbers, in a tensor on the CPU that broadcasts to its shape.
        self._places: Any = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        """Number of tensors that are followed."""
        return len(self._places)

    def start(self, tensor: Tensor, layer: str, axis: int) -> None:
        """Makes a tensor the output of a layer, with its channels along an axis."""
        numbers = [self._number(frozenset({(layer, channel)})) for channel in range(tensor.shape[axis])]
        shape = [-1 if dim == axis else 1 for dim in range(tensor.dim())]
        self._places[tensor] = torch.tensor(numbers, device="cpu").view(shape)

    def forget(self, tensor: Tensor) -> None:
        """Makes a tensor something else."""
        self._places.pop(tensor, None)

    def channels(self, tensor: Tensor, axis: int) -> list[Origin]:
        """The origin of each channel along an axis of a tensor."""
        places = self._places.get(tensor)
        if places is None:
            return [None] * tensor.shape[axis]
        places = self._together(places, [dim for dim in range(places.dim()) if dim != axis]).flatten()
        return [self._origins[number] for number in places.expand(tensor.shape[axis]).tolist()]

    def distinct(self, tensor: Tensor) -> list[Origin]:
        """The different origins in a tensor that are made of filters alone, in a fixed order."""
        places = self._places.get(tensor)
        numbers = [] if places is None else torch.unique(places).tolist()
        found = [origin for number in numbers if (origin := self._origins[number])]
        return sorted(found, key=lambda origin: sorted((layer, -1 if c is None else c) for layer, c in origin))

    def before(self, tensors: list[Tensor]) -> _Known:
        """What is known of the tensors of an operation, which may write to them."""
        return [self._places.get(tensor) for tensor in tensors]

    def after(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], before: _Known, result: Any) -> None:
        """Notes the origins of what the operation gave."""
        if any(known is not None for known in before):
            with suppress(Exception):  # it may be any operation on any tensors, and the pass is not ours to break
                self._note(func, args, kwargs, tensors, before, result)

    def _note(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], places: _Known, result: Any) -> None:
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        try:
            found = self._follow(func, args, kwargs, tensors, places, outputs)
        except Exception:
            found = None
        found = found or [self._lost(places, output) for output in outputs]
        for output, known in zip(outputs, found, strict=False):  # other outputs are indices or masks
            pairs = zip(known.shape, output.shape, strict=False)
            fits = known.dim() == output.dim() and all(own in (1, size) for own, size in pairs)
            self._set(output, known if fits else self._lost(places, output))
        if func._schema.is_mutable:
            self._lose_others(outputs, places)

    def _follow(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        places: _Known,
        outputs: list[Tensor],
    ) -> list[Tensor] | None:
        """The places of the first outputs of an operation, or None if they cannot be told."""
        library, name = func._schema.name.split("::")
        name = name.strip("_")
        if _MIX.fullmatch(name):
            return [_something_else(output) for output in outputs]
        unchanged = [known for tensor, known in zip(tensors, places, strict=True) if tensor is outputs[0]]
        if unchanged and not func._schema.is_mutable:  # such as what has nothing to do in evaluation mode
            return [_something_else(outputs[0]) if unchanged[0] is None else unchanged[0]]
        if library != "aten":
            return None
        if name.endswith("_like") or name.startswith("new_"):  # of the shape alone
            number = _ZERO if "zeros" in name else _ELSE
            return [torch.full([1] * outputs[0].dim(), number, device="cpu")]
        if name in ("cat", "concat", "concatenate"):
            return [_cat(tensors, places, args[1] if len(args) > 1 else kwargs.get("dim", 0))]
        first = places[0]
        if name in _KEEP:
            return None if first is None else [first.contiguous()]
        if torch.Tag.pointwise in func.tags or name in _POINTWISE:
            return [self._pointwise(func, args, kwargs, tensors, places)]
        if first is None:
            return None
        if name in _RESHAPE:
            return [_reshape(first, tensors[0], outputs[0])]
        how = [value for value in args[2:] if value not in (None, 0, "constant")] if "pad" in name else []
        if name in ("constant_pad_nd", "pad") and not how:
            return [_pad(first, args[1])]
        if name in _MOVE or (func.is_view and name != "as_strided"):
            return _move(func, args, kwargs, first, tensors[0])
        if _WITHIN_MAPS.fullmatch(name) or (name == "pad" and how[0] in ("reflect", "replicate")):
            return [self._together(first, range(2, first.dim()))]
        if name in _REDUCE:
            dims = args[1] if len(args) > 1 else kwargs.get("dim")
            dims = [dims] if isinstance(dims, int) else dims or range(first.dim())
            reduced = self._together(first, dims)
            return [reduced if outputs[0].dim() == first.dim() else reduced.squeeze(tuple(dims))]
        return None

    def _pointwise(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], places: _Known) -> Tensor:
        """What becomes of zeros is found out by trying, on stand-ins for the tensors."""

        def gives_zero(zeros: Iterable[int]) -> bool:
            numbers = iter(range(len(tensors)))
            standing_in = tree_map(
                lambda value: _stand_in(value, next(numbers) in zeros) if isinstance(value, Tensor) else value,
                (args, kwargs),
            )
            return not func(*standing_in[0], **standing_in[1]).any()

        pairs = list(zip(tensors, places, strict=True))
        varying = [k for k, (tensor, known) in enumerate(pairs) if known is not None or not _is_constant(tensor)]
        operands = [_something_else(tensor) if known is None else known for tensor, known in pairs]
        tried = torch.Tag.nondeterministic_seeded not in func.tags
        alone = [n for n, k in enumerate(varying) if tried and gives_zero([k])]  # as in a product
        together = tried and gives_zero(varying)  # as in a sum, or of one tensor

        def rule(*origins: Origin) -> Origin:
            found = sorted((origin for n in alone if is_followed(origin := origins[n])), key=len)
            if found and all(found[0] <= other for other in found):
                return found[0]
            return all_of(*origins) if together and not found else _lose(all_of(*origins))

        return self._combine(rule, [operands[k] for k in varying])

    def _number(self, origin: Origin) -> int:
        if origin is not None and len(origin) > _MOST:
            return _ELSE
        if origin not in self._numbers:
            self._numbers[origin] = len(self._origins)
            self._origins.append(origin)
        return self._numbers[origin]

    def _combine(self, rule: Callable[..., Origin], places: list[Tensor]) -> Tensor:
        """A rule for origins, applied to places that lie one above the other."""
        shape = np.broadcast_shapes(*(known.shape for known in places))
        stacked = torch.stack([known.expand(shape) for known in places])
        columns, inverse = torch.unique(stacked.flatten(1), dim=1, return_inverse=True)
        results = [self._number(rule(*[self._origins[number] for number in column])) for column in columns.T.tolist()]
        return torch.tensor(results, device="cpu")[inverse].view(shape)

    def _together(self, places: Tensor, dims: Iterable[int]) -> Tensor:
        """Places along some axes taken as one, which is 0 if all of them are; the axes keep a length of 1."""
        for dim in dims:
            if places.shape[dim] > 1:
                places = self._combine(all_of, list(torch.split(places, 1, dim)))
        return places

    def _lost(self, places: _Known, output: Tensor) -> Tensor:
        numbers = {number for known in places if known is not None for number in torch.unique(known).tolist()}
        origins = [origin for number in numbers if (origin := self._origins[number])]
        number = self._number(_lose(frozenset().union(*origins)))
        return torch.full([1] * output.dim(), number, device="cpu")

    def _set(self, tensor: Tensor, places: Tensor) -> None:
        if bool((places == _ELSE).all()):
            self.forget(tensor)
        else:
            self._places[tensor] = places

    def _lose_others(self, written: list[Tensor], places: _Known) -> None:
        """Other views of what was written to are not followed any more."""
        storages = {tensor.untyped_storage()._cdata for tensor in written}
        for tensor, known in list(self._places.items()):
            if tensor.untyped_storage()._cdata in storages and not any(tensor is output for output in written):
                self._set(tensor, self._lost([known, *places], tensor))


def is_followed(origin: Origin) -> TypeGuard[frozenset[tuple[str, int]]]:
    """Whether it is known what makes a place 0."""
    return origin is not None and all(channel is not None for _, channel in origin)


def all_of(*origins: Origin) -> Origin:
    """What a sum is made of."""
    known = [origin for origin in origins if origin is not None]
    return frozenset().union(*known) if len(known) == len(origins) else None


def _lose(origin: Origin) -> Origin:
    return frozenset((layer, None) for layer, _ in origin) if origin else None


def _is_constant(tensor: Tensor) -> bool:
    return tensor.dim() == 0 or isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def _something_else(tensor: Tensor) -> Tensor:
    return torch.full([1] * tensor.dim(), _ELSE, device="cpu")


def _stand_in(tensor: Tensor, zero: bool) -> Tensor:
    values = torch.zeros(2, device="cpu") if zero else torch.tensor([-0.7, 1.3], device="cpu")
    if tensor.dtype == torch.bool:
        return values > 0
    return values if tensor.is_floating_point() else values.sign().to(tensor.dtype)


def _compact(places: Tensor) -> Tensor:
    """The same with a length of 1 along the axes on which nothing changes."""
    for dim in range(places.dim()):
        if places.stride(dim) == 0:
            places = places.narrow(dim, 0, 1)
    for dim in range(places.dim()):
        first = places.narrow(dim, 0, 1)
        places = first if bool((places == first).all()) else places
    return places


def _cat(tensors: list[Tensor], places: _Known, dim: int) -> Tensor:
    known = [_something_else(t) if p is None else p for t, p in zip(tensors, places, strict=True)]
    shape = [max(sizes) for sizes in zip(*(places.shape for places in known), strict=True)]
    dim %= len(shape)
    sizes = [[*shape[:dim], tensor.shape[dim], *shape[dim + 1 :]] for tensor in tensors]
    return torch.cat([p.expand(size) for p, size in zip(known, sizes, strict=True)], dim)


def _reshape(places: Tensor, tensor: Tensor, output: Tensor) -> Tensor:
    try:
        return _compact(places.expand(tensor.shape).view(output.shape))
    except RuntimeError:  # axes come together that would need a copy: of one sample, then
        if places.shape[0] != 1 or tensor.shape[0] != output.shape[0]:
            raise
        one = places.expand(1, *tensor.shape[1:])
        return _compact(one.reshape(1, *output.shape[1:]))


def _pad(places: Tensor, pad: list[int]) -> Tensor:
    # Where the places along an axis are all the same, the zeros around them may be called the same.
    amounts = [amount * (places.shape[-1 - n // 2] > 1) for n, amount in enumerate(pad)]
    return F.pad(places, amounts, value=_ZERO)


def _move(func: Any, args: Any, kwargs: Any, places: Tensor, tensor: Tensor) -> list[Tensor]:
    """The operation does to the places what it does to the tensor: without a copy, or with one of a single sample."""
    one = not func.is_view and places.shape[0] == 1
    whole = places.expand(1 if one else tensor.shape[0], *tensor.shape[1:])

    def swap(value: Any) -> Any:
        if value is tensor:
            return whole
        return value.cpu() if isinstance(value, Tensor) and not func.is_view else value

    args, kwargs = tree_map(swap, (args, kwargs))
    return [_compact(moved) for moved in tree_leaves(func(*args, **kwargs))]
