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
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.network.class_scores import NAME_IT, Match, Scores, described, distance_of, matches_in
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

Replay = Callable[[ModuleCall, Tensor], Any]  # calls a module again with images
_EXACT = 0.01  # of what rounding explains: no other output is closer
_ROUNDING_OF_SUMS = 0.05  # of probabilities, in bfloat16


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
    known = _what_trains(found, own) if step.saw_backward else before
    if step.saw_backward:
        losses = [loss for loss in losses if loss.trains]
    elif known is not None:
        found = [one for one in found if one[0].loss in losses or one[0].output in known.own_loss]
    matches = [match for match, _ in found if known is None or match.output not in known.logged_only]
    missed = [loss for loss in losses if all(match.loss is not loss for match, _ in found)]
    chosen, problem = _choose_output(matches, *([], []) if named else (missed, others))
    if named and not chosen:  # the user knows
        return LossInput(Scores(reading="logits"), "", [Match(loss, Scores(), 1, 0) for loss in losses])
    known = known or LossInput(None)
    if not chosen:
        if known.scores is not None and replay is not None and not (losses or others or problem):
            return _known_from_training(step, replay, known)
        problem = problem or (known.problem if found else "") or _why_unknown(step, losses or own, others)
        return known._replace(scores=None, problem=problem, matches=(), call=None)
    call = next(call for match, call in found if match is chosen[0])._replace(outputs=())
    return known._replace(scores=chosen[0].scores, problem="", matches=chosen, note=_note_of(chosen[0].loss), call=call)


def _what_trains(found: Sequence[tuple[Match, ModuleCall]], own: Sequence[LossCall]) -> LossInput:
    """Tell the outputs whose losses are only logged, and those whose softmax trains, by a training step."""
    outputs = {match.output for match, _ in found}
    trained = {match.output for match, _ in found if match.loss.trains}
    by_softmax = frozenset(match.output for match, _ in found if match.loss in own)
    return LossInput(None, logged_only=frozenset(outputs - trained), own_loss=by_softmax)


def _known_from_training(step: StepWatch, replay: Replay, before: LossInput) -> LossInput:
    """Take what a training step has told for a validation step without a loss that calls the same module alike."""
    scores, called = before.scores, [call for call in step.calls if call.prepared is None]
    problem = f"a validation step has no loss, and does not call the module as a training step does. {NAME_IT}"
    with suppress(Exception, SystemExit):
        assert scores is not None
        assert step.images is not None
        assert before.call is not None
        outputs = next(call.outputs for call in called if call.name == scores.module)
        seen = next(tensor for key, tensor, _ in outputs if key == scores.key)
        again = dict(float_tensors(replay(before.call, step.images.clone())))[scores.key]
        seen = seen.index_select(scores.samples, step.checked.to(seen.device))
        if distance_of(again, seen) <= 1 and _are_probabilities(again, scores.classes) == (scores.reading != "logits"):
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
    return whole and distance_of(loss.target[step.checked], step.images) <= 1


def _match_losses(
    step: StepWatch, losses: Sequence[LossCall], replay: Replay | None, named: str | None
) -> list[tuple[Match, ModuleCall]]:
    """Find the output that each loss is given, and the call that returned it."""
    best: dict[int, tuple[float, Match, ModuleCall]] = {}
    checked = step.checked[: min((step.n_checked(loss.given.numel() // step.count) for loss in losses), default=0)]
    for call, outputs in _outputs(step, checked, replay, named) if losses else ():
        for (place, loss), (key, tensor) in product(enumerate(losses), outputs):
            for distance, match in matches_in(tensor, Scores(call.name, key), loss, checked, step.count):
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
        return [], f"a step has several losses of classes, which are given {given}{rest}. {NAME_IT}"
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
        return f"its loss, {first.loss.name}, is given a part of what {first.scores.module!r} returns. {NAME_IT}"
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
        return f"`backward` goes through none of its losses of classes, {names}. {NAME_IT}"
    if losses and step.calls:
        last = step.calls[-1]
        output = {key: tensor for key, tensor, _ in last.outputs}
        name = repr(last.name) if last.name else type(step.model).__name__
        returned = f"{name} returns {described([output.get('', output)])}"
        given = f"its loss, {losses[-1].name}, is given {described([losses[-1].given])}"
        return f"{given}, and no module returns that for the images alone: {returned}. {NAME_IT}"
    if losses:
        return f"its loss, {losses[-1].name}, was seen, but no module that is called with the images. {NAME_IT}"
    if others:
        compared = WITHOUT_CLASSES.get(others[0].name, "numbers, or the images")
        return f"its loss, {others[0].name}, compares {compared}, and knows no classes"
    if step.unreadable:
        return f"its loss, {step.unreadable[0]}, is called inside of a transformation such as `vmap`. {NAME_IT}"
    return f"no loss of classes was seen in a step. {NAME_IT}"
