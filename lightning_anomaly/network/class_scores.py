"""Where a tensor that a module returns has the scores that a loss is given, compared by their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.images.batches import named_tensors
from lightning_anomaly.network.step_watch import OF_CLASSES, LossCall

Reading = Literal["logits", "probabilities"]
_CLOSE = 1e-3  # of the spread of what a loss is given: another number of images rounds otherwise
_ROUNDINGS = 4  # of the largest number
NAME_IT = (
    "Name a method or submodule that takes images and returns logits as `logits_from`; if that is the module itself, "
    '"forward"'
)


@dataclass(frozen=True)
class Scores:
    """Where the scores of classes are in what a module returns, and what they are."""

    module: str = ""  # its name in the model
    key: str = ""  # of the tensor in a nested output
    samples: int = 0  # axis
    classes: int | None = 1  # axis; None for one score of each image, which is that of one of two classes
    reading: Reading | None = None  # None: their values tell

    def of(self, output: Any) -> Tensor:
        """Return the scores `(n, C, ...)` in an output, or raise ValueError."""
        scores = dict(named_tensors(output)).get(self.key)
        if scores is None or not scores.ndim or not scores.is_floating_point():
            kind = f"of {output.dtype}, " if isinstance(output, Tensor) else ""
            raise ValueError(f"it is {described([output])}, {kind}not logits. {NAME_IT}")
        if scores.ndim == 1:
            return scores[:, None]
        return scores if self.classes is None else scores.movedim((self.samples, self.classes), (0, 1))


class Match(NamedTuple):
    """A loss that is given the scores of an output, or those of one of its places."""

    loss: LossCall
    scores: Scores
    n_places: int  # for which the output has scores
    n_classes: int
    shape: tuple[int, ...] = ()  # of the output
    prepared: bool = False  # whether the module was called with other images than those of the batch
    place: int | None = None  # None if the loss is given all
    rows: Tensor | None = None  # of what a loss of some images is given, by image compared (k,); -1 without one

    @property
    def output(self) -> tuple[str, str]:
        """The module and the key of the output."""
        return self.scores.module, self.scores.key


def matches_in(
    tensor: Tensor, output: Scores, loss: LossCall, checked: Tensor, count: int
) -> Iterator[tuple[float, Match]]:
    """Yield the ways to read an output as what a loss is given, and how far each is from it."""
    wanted = _by_image(loss, count)
    if wanted is None:
        return
    few, (places, classes) = len(checked), wanted.shape[1:]
    of_all = len(wanted) == count
    wanted = wanted[checked.to(wanted.device)] if of_all else wanted
    for samples, axis in product(range(min(2, tensor.ndim)), [None] if loss.is_binary else range(tensor.ndim)):
        if samples == axis or tensor.shape[samples] not in (few, count) or (loss.is_binary and samples):
            continue
        if axis is not None and tensor.shape[axis] != classes:
            continue
        rows = tensor if tensor.shape[samples] == few else tensor.index_select(samples, checked.to(tensor.device))
        rows = rows[..., None] if axis is None else rows.movedim((samples, axis), (0, -1))
        rows = rows.reshape(few, -1, classes)
        for read, reading in _readings(rows, loss):
            found = Match(
                loss,
                Scores(output.module, output.key, samples, axis, reading),
                rows.shape[1],
                rows.shape[2],
                tuple(tensor.shape),
            )
            if not of_all:
                yield _closest_rows(read, wanted, found)
            elif places == rows.shape[1]:
                yield distance_of(read, wanted), found
            elif places == 1:
                for place in range(rows.shape[1]):
                    yield distance_of(read[:, place], wanted[:, 0]), found._replace(place=place)


def _by_image(loss: LossCall, count: int) -> Tensor | None:
    """Return what a loss is given by image, place and class `(count, P, C)`; of some images `(m, 1, C)`."""
    given = loss.given.transpose(0, 1) if loss.name == "ctc_loss" else loss.given
    given = given[..., None] if loss.is_binary else given.movedim(loss.axis, -1)
    if len(given) == count or (given.ndim == 2 and len(given) % count == 0):
        return given.reshape(count, -1, given.shape[-1])
    return given[:, None] if given.ndim == 2 and len(given) < count and given.shape[1] > 1 else None


def _readings(rows: Tensor, loss: LossCall) -> Iterator[tuple[Tensor, Reading]]:
    """Yield what a loss is given if an output has logits, or probabilities."""
    kind = OF_CLASSES.get(loss.name, "logits")
    if kind == "probabilities":
        yield rows, "probabilities"
        yield rows.sigmoid(), "logits"
        return
    yield rows, "logits"
    if kind == "log-probabilities":
        yield rows.log_softmax(-1), "logits"
    if rows.min() >= 0:
        yield rows.log(), "probabilities"


def distance_of(found: Tensor, wanted: Tensor | None) -> float:
    """Return the largest difference in units of what rounding explains; infinite for other shapes."""
    if wanted is None:
        return math.inf
    finite = wanted.isfinite()
    if found.shape != wanted.shape or not finite.any() or not torch.equal(finite, found.isfinite().to(finite.device)):
        return math.inf
    first, second = (tensor.detach().to("cpu", torch.float64)[finite.cpu()] for tensor in (found, wanted))
    eps = max(_eps(tensor) for tensor in (found, wanted))
    allowed = _CLOSE * second.std(correction=0) + _ROUNDINGS * eps * second.abs().max()
    return float((first - second).abs().max() / allowed.clamp(min=torch.finfo(torch.float64).tiny))


def _eps(tensor: Tensor) -> float:
    """Return how numbers are rounded that a tensor was computed from."""
    kind = tensor.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
    tf32 = 2.0**-10 if kind == "cuda" else 0.0
    return max(torch.finfo(computed).eps, torch.finfo(tensor.dtype).eps, tf32)


def _closest_rows(rows: Tensor, wanted: Tensor, match: Match) -> tuple[float, Match]:
    """Find the rows `(m, 1, C)` of a loss of some images that images have `(k, 1, C)`."""
    if rows.shape[1] != 1:
        return math.inf, match
    first, second = rows[:, 0].double(), wanted[:, 0].double()
    nearest = torch.cdist(first, second).argmin(1)
    distances = [distance_of(row, second[place]) for row, place in zip(first, nearest, strict=True)]
    close = [distance for distance in distances if distance <= 1]
    alike = torch.tensor([distance <= 1 for distance in distances], device=nearest.device)
    return max(close, default=math.inf), match._replace(rows=nearest.where(alike, -1).cpu())


def described(outputs: Iterable[Any]) -> str:
    """Describe tensors, or nested outputs, by their shapes."""
    texts = list[str]()
    for output in outputs:
        parts = [f"'{name}' {tuple(tensor.shape)}" for name, tensor in named_tensors(output) if name]
        shape = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        texts.append(shape + (f" with {', '.join(parts)}" if parts else ""))
    return ", ".join(texts)
