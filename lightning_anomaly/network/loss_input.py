"""What the loss of a step is given: which output of which module, along which axes, read how.

A `StepWatch` copies what each loss is given while the step runs, and notes which modules are called with its images.
Afterwards each of these modules is called again, with a few of the images alone: this replay is the very call that all
images will go through. The one whose output has the values that the loss was given for these images is what the run
judges by. So nothing is compared that the step prepared, changed in place, or computed from other images too. A
training step cannot be replayed, as dropout would differ: there, the outputs of its own calls are compared. It tells
which losses train the module, by the graph of what `backward` is called on: others are only logged, and do not count.
Where several losses with different targets are given different outputs, or none is found, one line says so, and
nothing is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.images.batches import named_tensors
from lightning_anomaly.network.step_watch import (
    OF_CLASSES,
    SOFTMAX,
    WITHOUT_CLASSES,
    LossCall,
    ModuleCall,
    StepWatch,
    float_tensors,
    is_unchanged,
)

Reading = Literal["logits", "probabilities"]
Replay = Callable[[ModuleCall, Tensor], Any]  # calls a module again with images
_CLOSE = 1e-3  # of the spread of what a loss is given: another number of images rounds otherwise
_EXACT = 0.01  # share of that within which no other output is closer
_ROUNDINGS = 4  # of the largest number
_ROUNDING_OF_SUMS = 0.05  # of probabilities, in bfloat16
_NAME_IT = (
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
            raise ValueError(f"it is {described([output])}, {kind}not logits. {_NAME_IT}")
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


class LossInput(NamedTuple):
    """What a step has told of what its loss is given."""

    scores: Scores | None  # None if it is not known to be an output with scores of classes
    problem: str = ""  # why it is not
    matches: Sequence[Match] = ()  # the losses that are given these scores
    note: str = ""  # on what the loss makes of them
    call: ModuleCall | None = None  # whose output these scores are, without its outputs
    logged_only: frozenset[tuple[str, str]] = frozenset()  # outputs whose losses train nothing
    own_loss: frozenset[tuple[str, str]] = frozenset()  # outputs whose softmax trains

    @property
    def n_classes(self) -> int | None:
        """Number of scores, if known."""
        return self.matches[0].n_classes if self.matches else None


def find_loss_input(
    step: StepWatch, replay: Replay | None, before: LossInput | None, named: str | None = None
) -> LossInput:
    """Find what the loss of a step is given, by a `replay` of its calls; without one by the calls of a training step.

    `before` is what a training step has told before a validation; `named` is what a user says returns logits.
    """
    losses = [loss for loss in step.losses if loss.name in OF_CLASSES and not _is_of_numbers(loss, step)]
    others = [loss for loss in step.losses if loss.name not in SOFTMAX and loss not in losses]
    own = [loss for loss in step.losses if loss.name in SOFTMAX and not others and loss.trains >= step.saw_backward]
    found = _match_losses(step, [*losses, *own], replay, named)
    logged, own_outputs = frozenset[tuple[str, str]](), frozenset[tuple[str, str]]()
    if replay is None and step.saw_backward:
        trained = {match.output for match, _ in found if match.loss.trains}
        logged = frozenset({match.output for match, _ in found} - trained)
        own_outputs = frozenset(match.output for match, _ in found if match.loss in own)
        losses = [loss for loss in losses if loss.trains]
    elif before is not None:
        logged, own_outputs = before.logged_only, before.own_loss
        found = [one for one in found if one[0].loss in losses or one[0].output in own_outputs]
    matches = [match for match, _ in found if match.output not in logged]
    missed = [loss for loss in losses if all(match.loss is not loss for match, _ in found)]
    chosen, problem = _choose_output(matches, *([], []) if named else (missed, others))
    if named and not chosen:  # the user knows
        return LossInput(Scores(reading="logits"), "", [Match(loss, Scores(), 1, 0) for loss in losses])
    if not chosen:
        if not (losses or others or problem or before is None or before.scores is None) and replay is not None:
            return _known_from_training(step, replay, before)
        only_logged = before.problem if before is not None and found else ""
        problem = problem or only_logged or _why_unknown(step, losses or own, others)
        return LossInput(None, problem, logged_only=logged, own_loss=own_outputs)
    call = next(call for match, call in found if match is chosen[0])._replace(outputs=())
    return LossInput(chosen[0].scores, "", chosen, _note_of(chosen[0].loss), call, logged, own_outputs)


def _known_from_training(step: StepWatch, replay: Replay, before: LossInput) -> LossInput:
    """Take what a training step has told for a validation step without a loss that calls the same module alike."""
    scores, called = before.scores, [call for call in step.calls if call.prepared is None]
    problem = f"a validation step has no loss, and does not call the module as a training step does. {_NAME_IT}"
    with suppress(Exception, SystemExit):
        assert scores is not None
        assert step.images is not None
        assert before.call is not None
        outputs = next(call.outputs for call in called if call.name == scores.module)
        seen = next(tensor for key, tensor, _ in outputs if key == scores.key)
        again = dict(float_tensors(replay(before.call, step.images.clone())))[scores.key]
        seen = seen.index_select(scores.samples, step.checked.to(seen.device))
        if _distance(again, seen) <= 1 and _are_probabilities(again, scores.classes) == (scores.reading != "logits"):
            matches = [match._replace(loss=replace(match.loss, target=None)) for match in before.matches]
            return before._replace(matches=matches)
    return LossInput(None, problem)


def _are_probabilities(tensor: Tensor, axis: int | None) -> bool:
    """Whether numbers may be probabilities, by one score of each or by an axis of the classes."""
    off = tensor.clamp(max=1) - tensor if axis is None else tensor.sum(axis) - 1
    return bool(tensor.min() >= 0 and off.abs().max() <= _ROUNDING_OF_SUMS)


def _is_of_numbers(loss: LossCall, step: StepWatch) -> bool:
    """Whether a loss of one score has targets that are no two classes, or are the images."""
    if not loss.is_binary or loss.target is None:
        return False
    if len(loss.target.unique()) > 2:
        return True
    whole = step.images is not None and len(loss.target) == step.count
    return whole and _distance(loss.target[step.checked], step.images) <= 1


def _match_losses(
    step: StepWatch, losses: Sequence[LossCall], replay: Replay | None, named: str | None
) -> list[tuple[Match, ModuleCall]]:
    """Find the output that each loss is given, and the call that returned it."""
    best: dict[int, tuple[float, Match, ModuleCall]] = {}
    checked = step.checked[: min((step.n_checked(loss.given.numel() // step.count) for loss in losses), default=0)]
    for call, outputs in _outputs(step, checked, replay, named) if losses else ():
        for (place, loss), (key, tensor) in product(enumerate(losses), outputs):
            for distance, match in _matches_in(tensor, Scores(call.name, key), loss, checked, step.count):
                if distance <= 1 and distance < best.get(place, (math.inf,))[0]:
                    best[place] = distance, match._replace(prepared=call.prepared is not None), call
        if all(place in best and best[place][0] <= _EXACT for place in range(len(losses))):
            break
    return [(match, call) for _, (_, match, call) in sorted(best.items())]


def _outputs(
    step: StepWatch, checked: Tensor, replay: Replay | None, named: str | None
) -> Iterator[tuple[ModuleCall, list[tuple[str, Tensor]]]]:
    """Yield calls of modules, and what they return for the images checked.

    The model itself comes first, then what returned last, as outer modules do, then what was given prepared images.
    """
    last_first = step.calls[::-1]
    order = sorted(last_first, key=lambda call: (call.prepared is not None, call.name != ""))
    if replay is None:
        for call in order:
            yield call, [(key, tensor) for key, tensor, version in call.outputs if is_unchanged(tensor, version)]
        return
    distinct = dict[tuple[str, bool], ModuleCall]()
    for call in [ModuleCall(named)] if named else [*order, ModuleCall("")]:  # `forward` may be called unseen
        distinct.setdefault((call.name, call.prepared is not None), call)
    for call in distinct.values():
        images = step.images if call.prepared is None else call.prepared
        if images is not None:
            with suppress(Exception, SystemExit):  # whatever a module does when it is called with images alone
                yield call, float_tensors(replay(call, images[: len(checked)].clone()))


def _matches_in(
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
                yield _distance(read, wanted), found
            elif places == 1:
                for place in range(rows.shape[1]):
                    yield _distance(read[:, place], wanted[:, 0]), found._replace(place=place)


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


def _distance(found: Tensor, wanted: Tensor | None) -> float:
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
    distances = [_distance(row, second[place]) for row, place in zip(first, nearest, strict=True)]
    close = [distance for distance in distances if distance <= 1]
    alike = torch.tensor([distance <= 1 for distance in distances], device=nearest.device)
    return max(close, default=math.inf), match._replace(rows=nearest.where(alike, -1).cpu())


def _choose_output(
    matches: Sequence[Match], missed: Sequence[LossCall], others: Sequence[LossCall]
) -> tuple[list[Match], str]:
    """Choose the output whose scores count and return its losses, or say why none does."""
    outputs: dict[Any, list[Match]] = {}
    for match in matches:
        outputs.setdefault((match.scores, match.prepared), []).append(match)
    problems = {output: _problem_of(found) for output, found in outputs.items()}
    usable = [found for output, found in outputs.items() if not problems[output]]
    if not usable:
        return [], next(iter(problems.values()), "")
    blind = [loss for loss in others if WITHOUT_CLASSES.get(loss.name) in ("margins", "several classes of an image")]
    # Of one task at several resolutions, the finest counts.
    finest = max(found[0].n_places for found in usable)
    full = [found for found in usable if found[0].n_places == finest]
    targets = [found[0].loss.target for found in full] + [loss.target for loss in missed]
    tasks = {(found[0].scores.module, found[0].n_classes, found[0].n_places > 1) for found in usable}
    if blind or len(full) > 1 or len(tasks) * len(_different(targets)) > 1:
        given = described([match.loss.given for found in usable for match in found[:1]])
        rest = "".join(f", and {loss.name}" for loss in [*missed, *blind][:1])
        return [], f"a step has several losses of classes, which are given {given}{rest}. {_NAME_IT}"
    return full[0], ""


def _problem_of(matches: Sequence[Match]) -> str:
    """Say why an output does not have one score of each class for an image, or for each place in it."""
    first = matches[0]
    places = {match.place for match in matches}
    if first.scores.classes is None and [*first.shape[1:2], 1][0] > 1:
        return "its loss is given several scores for each image, each of a class or a place of its own"
    if first.scores.classes is not None and first.n_classes == 1:
        return "its loss is given scores of one class"
    if None not in places and len(places) < first.n_places:
        return f"its loss, {first.loss.name}, is given a part of what {first.scores.module!r} returns. {_NAME_IT}"
    if first.loss.name == "nll_loss" and (first.loss.given.logsumexp(first.loss.axis).abs() > _ROUNDING_OF_SUMS).any():
        return "its loss, nll_loss, is given numbers that are no logarithms of probabilities"
    return ""


def _note_of(loss: LossCall) -> str:
    """Note that a loss takes a softmax of what is one already."""
    given = loss.given
    if loss.name != "cross_entropy" or given.ndim < 2 or not _are_probabilities(given, loss.axis):
        return ""
    return (
        "The loss, cross_entropy, is given probabilities, and takes the softmax of what it is given: the network "
        "learns less than from logits. What is compared is what the loss makes of them."
    )


def _different(targets: Iterable[Any]) -> list[Any]:
    """Return the targets that differ from those before them."""
    kept = list[Any]()
    for target in targets:
        if not any(one is target or (isinstance(target, Tensor) and _equal(one, target)) for one in kept):
            kept.append(target)
    return kept


def _equal(first: Any, second: Tensor) -> bool:
    return isinstance(first, Tensor) and torch.equal(first, second)


def _why_unknown(step: StepWatch, losses: Sequence[LossCall], others: Sequence[LossCall]) -> str:
    if losses and step.saw_backward and not any(loss.trains for loss in step.losses):
        names = ", ".join(sorted({loss.name for loss in losses}))
        return f"`backward` goes through none of its losses of classes, {names}. {_NAME_IT}"
    if losses and step.calls:
        last = step.calls[-1]
        output = {key: tensor for key, tensor, _ in last.outputs}
        name = repr(last.name) if last.name else type(step.model).__name__
        returned = f"{name} returns {described([output.get('', output)])}"
        given = f"its loss, {losses[-1].name}, is given {described([losses[-1].given])}"
        return f"{given}, and no module returns that for the images alone: {returned}. {_NAME_IT}"
    if losses:
        return f"its loss, {losses[-1].name}, was seen, but no module that is called with the images. {_NAME_IT}"
    if others:
        compared = WITHOUT_CLASSES.get(others[0].name, "numbers, or the images")
        return f"its loss, {others[0].name}, compares {compared}, and knows no classes"
    if step.unreadable:
        return f"its loss, {step.unreadable[0]}, is called inside of a transformation such as `vmap`. {_NAME_IT}"
    return f"no loss of classes was seen in a step. {_NAME_IT}"


def described(outputs: Iterable[Any]) -> str:
    """Describe tensors, or nested outputs, by their shapes."""
    texts = list[str]()
    for output in outputs:
        parts = [f"'{name}' {tuple(tensor.shape)}" for name, tensor in named_tensors(output) if name]
        shape = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        texts.append(shape + (f" with {', '.join(parts)}" if parts else ""))
    return ", ".join(texts)
