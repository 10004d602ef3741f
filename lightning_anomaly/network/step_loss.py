"""What a step's own loss tells: which output has the scores of classes, along which axis, and what the labels are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_anomaly.images.batches import class_numbers, first_tensor, label_columns, labels_at, named_tensors
from lightning_anomaly.network.forward import isolated_calls
from lightning_anomaly.network.layers import find_logits_call
from lightning_anomaly.network.loss_watch import (
    BEFORE,
    OF_CLASSES,
    SOFTMAX,
    WITHOUT_CLASSES,
    FunctionCall,
    ModuleCall,
    StepWatch,
)

Reading = Literal["logits", "probabilities"]
_Axes = tuple[int, int | None]  # of the samples, and of the classes; None for one score of each sample

_REPEATED = 4  # images with a number seen before, which tell that targets are a function of it
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
            raise ValueError(f"it is {_described([output])}, {kind}not logits. {_NAME_IT}")
        if scores.ndim == 1:
            return scores[:, None]
        return scores if self.classes is None else scores.movedim((self.samples, self.classes), (0, 1))


class StepLabels(NamedTuple):
    """Where a step takes labels from: a tensor of its batches, and what it makes of its numbers."""

    column: str = ""  # name of the tensor
    classes: Mapping[float, float] | None = None  # `{number: label}`; None if the numbers are the labels
    problem: str = ""  # why no label is known of an image

    def at(self, columns: Mapping[str, Mapping[int, float]], positions: Iterable[int]) -> list[int | None]:
        """Return the labels of images by position, from the numbers of `BatchLabels`; None where unknown."""
        numbers = columns.get(self.column, {})
        if self.classes is not None:
            numbers = {position: self.classes.get(number, torch.nan) for position, number in numbers.items()}
        return labels_at(numbers, positions)


class StepLoss(NamedTuple):
    """What a step has told of its loss."""

    scores: Scores | None  # None if no output has scores of classes; the problem is that of the labels
    labels: StepLabels
    form: tuple[str, ...] = ()  # of the batch
    n_classes: int | None = None  # number of scores of an image, if known
    prepared: Tensor | None = None  # what the module was called with, if these were not the images of the batch


class _Output(NamedTuple):
    """An output with the losses that are given it, or parts of it."""

    scores: Scores
    tensor: Tensor
    prepared: Tensor | None
    losses: list[FunctionCall]

    @property
    def width(self) -> int:
        """Number of scores."""
        return 1 if self.scores.classes is None else self.tensor.shape[self.scores.classes]

    @property
    def has_several(self) -> bool:
        """Whether a loss of single scores is given several of an image, which are no positions of it."""
        return self.scores.classes is None and self.tensor.ndim > 1 and self.tensor.shape[1] > 1

    @property
    def targets(self) -> list[Any]:
        """The targets of the losses: one for the whole output, or those of its parts; none if parts are missing."""
        whole = [loss.target for loss in self.losses if loss.input.numel() == self.tensor.numel()]
        parts = {(loss.input.data_ptr(), loss.input.numel()) for loss in self.losses}
        all_parts = sum(numel for _, numel in parts) == self.tensor.numel()
        return whole[:1] or ([loss.target for loss in self.losses] if all_parts else [])


def form_of(batch: Any) -> tuple[str, ...]:
    """Describe the tensors of a batch, which tells whether another batch has the same ones."""
    return tuple(f"{name} {tensor.ndim} {tensor.is_floating_point()}" for name, tensor in named_tensors(batch))


def tell_loss(step: StepWatch, logits_from: str | None = None) -> StepLoss:
    """Tell what was seen of a step; with `logits_from` a user names the method or submodule that returns logits.

    A loss of classes counts where what it is given is an output of the model, or of a submodule that was called with
    the images. Of several on one output, or on outputs of several sizes with the same classes (deep supervision), the
    last one on the largest counts.
    """
    form, calls = form_of(step.batch), step.calls
    if logits_from is not None:
        name = "" if logits_from == "forward" else logits_from
        calls = [call for call in calls if call.name == name] or _named_call(step, logits_from)
    losses = [loss for loss in step.losses if loss.name in OF_CLASSES]
    losses = losses or [loss for loss in step.losses if loss.name in SOFTMAX]
    outputs, unmatched = _match_losses(step, losses, calls)
    chosen, problem = _choose_output(outputs, [] if logits_from is not None else unmatched)
    if chosen is not None:
        targets = chosen.targets
        several = StepLabels(problem=f"the loss has {len(targets)} targets for each image")
        labels = several if len(targets) > 1 else _labels_in(step, targets[0])
        return StepLoss(chosen.scores, labels, form, chosen.width, chosen.prepared)
    if logits_from is not None:  # the user knows
        targets = _different(loss.target for loss in losses)
        unknown = StepLabels(problem=f"{'several losses' if targets else 'no loss'} of classes were seen")
        return StepLoss(Scores(reading="logits"), _labels_in(step, targets[0]) if len(targets) == 1 else unknown, form)
    return StepLoss(None, StepLabels(problem=problem or _why_unknown(step, losses)), form)


def _named_call(step: StepWatch, logits_from: str) -> list[ModuleCall]:
    """Call what a user names, which is no module that the step called, with the images of the batch."""
    images = first_tensor(step.batch)
    with suppress(Exception), isolated_calls(step.model, find_logits_call(step.model, logits_from)) as call:
        return [] if images is None else [ModuleCall(logits_from, call(images.clone()), None)]
    return []


def _match_losses(
    step: StepWatch, losses: Iterable[FunctionCall], calls: Sequence[ModuleCall]
) -> tuple[list[_Output], list[FunctionCall]]:
    """Find the outputs that losses are given; also return the losses that are given something else."""
    # The model itself comes first, then what was called last, as outer modules return last.
    last_first = calls[::-1]
    ranked = sorted(last_first, key=lambda call: (call.prepared is not None, call.name != ""))
    tensors = [(call, *named) for call in ranked for named in named_tensors(call.output)]
    tensors = [(call, key, tensor) for call, key, tensor in tensors if tensor.is_floating_point() and tensor.ndim]
    outputs, unmatched = dict[Scores, _Output](), list[FunctionCall]()
    for loss in losses:
        if (output := _find_output(step, loss, tensors)) is None:
            unmatched.append(loss)
        else:
            outputs.setdefault(output.scores, output).losses.append(loss)
    return [*outputs.values()], unmatched


def _find_output(
    step: StepWatch, loss: FunctionCall, tensors: Sequence[tuple[ModuleCall, str, Tensor]]
) -> _Output | None:
    """Find what a loss is given, or what an activation made that of, among the outputs of modules."""
    given, kind = loss.input, OF_CLASSES.get(loss.name, "logits")
    axes: _Axes = (1, 2) if loss.name == "ctc_loss" else (0, min(1, given.ndim - 1))
    if loss.name.startswith("binary"):
        axes = 0, None
    while True:
        for call, key, tensor in sorted(tensors, key=lambda named: not _same_memory(named[2], given)):
            places = _axes_in(tensor.detach(), given, *axes)
            if places is not None and tensor.shape[places[0]] == step.count:
                reading: Reading = "probabilities" if kind == "probabilities" else "logits"
                return _Output(Scores(call.name, key, *places, reading), tensor.detach(), call.prepared, [])
        made = [one for one in step.activations if (kind, one.name) in BEFORE and _same_memory(one.result, given)]
        made = [one for one in made if one.result.numel() == given.numel()]
        if not made:
            return None
        samples, classes = (None if axis is None else _axis_in(made[-1].result, given, axis) for axis in axes)
        axes, kind, given = (samples or 0, classes), BEFORE[kind, made[-1].name], made[-1].input


def _axes_in(whole: Tensor, given: Tensor, samples: int, classes: int | None) -> _Axes | None:
    """Find the axes in a tensor of which another one is a view, a part or a copy; None if it is not."""
    if classes is None:
        same = whole.numel() == given.numel() and torch.equal(whole.flatten().to(given.dtype), given.flatten())
        return (0, None) if same else None
    start = given.numel() < whole.numel() or given.storage_offset() == whole.storage_offset()
    if _same_memory(whole, given) and start:  # two outputs may be parts of one tensor
        first, axis = (_axis_in(whole, given, axis) for axis in (samples, classes))
        if axis is not None:
            return 0 if first is None or first == axis else first, axis
    width, alike = given.shape[classes], given.ndim == whole.ndim
    for axis, size in enumerate(whole.shape):
        if size == width and whole.numel() == given.numel():
            moved = whole.movedim(axis, classes) if alike else whole.movedim(axis, -1).reshape(-1, width)
            if moved.shape == given.shape and torch.equal(moved.to(given.dtype), given):
                return 0, axis
    return None


def _axis_in(whole: Tensor, view: Tensor, axis: int) -> int | None:
    """Find an axis of a view in the tensor of which it shows the memory; None if it is not there."""
    if whole.shape == view.shape and whole.stride() == view.stride():
        return axis
    axes = enumerate(zip(whole.shape, whole.stride(), strict=True))
    return next((place for place, pair in axes if pair == (view.shape[axis], view.stride(axis))), None)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _choose_output(outputs: Sequence[_Output], unmatched: Sequence[FunctionCall]) -> tuple[_Output | None, str]:
    """Choose the output whose scores count, or say why none does."""
    single = [output for output in outputs if not output.has_several and output.targets]
    if not single:
        several = any(output.has_several for output in outputs)
        return None, "its loss is given several scores for each image, each of a class of its own" if several else ""
    largest = max(output.tensor.numel() for output in single)
    full = [output for output in single if output.tensor.numel() == largest]
    others = [loss for loss in unmatched if loss.name in OF_CLASSES]
    targets = [output.targets[0] for output in full] + [loss.target for loss in others]
    if len({output.width for output in single}) == len(_different(targets)) == 1:
        return full[-1], ""
    given = _described([*(output.tensor for output in outputs), *(loss.input for loss in others)])
    return None, f"a step has several losses of classes, which are given {given}. {_NAME_IT}"


def _different(targets: Iterable[Any]) -> list[Any]:
    """Return the targets that differ from those before them."""
    kept = list[Any]()
    for target in targets:
        if not any(isinstance(one, Tensor) and isinstance(target, Tensor) and torch.equal(one, target) for one in kept):
            kept.append(target)
    return kept


def _labels_in(step: StepWatch, target: Any) -> StepLabels:
    """Find the tensor of the batch that has the targets, or of which they are a function."""
    if not isinstance(target, Tensor):
        return StepLabels(problem="no targets of the loss were seen")
    wanted = class_numbers(target, step.count)
    if wanted is None:
        shape = f"targets of shape {tuple(target.shape)} for {step.count} images"
        return StepLabels(problem=f"the loss is given {shape}, not one class for each")
    wanted = wanted.round().where((wanted - wanted.round()).abs() <= 0.1, torch.nan)  # smoothed ones
    known, functions = wanted >= 0, dict[int, list[StepLabels]]()  # by the number of different numbers
    if not (labels := wanted[known].tolist()):
        return StepLabels(problem="no target of the loss is a class")
    columns = label_columns(step.batch, step.count, first_tensor(step.batch))
    for name, numbers in sorted(columns.items(), key=lambda column: column[1][known].tolist() != labels):
        if (values := numbers[known].tolist()) == labels:
            return StepLabels(name)
        classes = dict(zip(values, labels, strict=True))
        if len(labels) - len(classes) >= _REPEATED and [classes[value] for value in values] == labels:
            functions.setdefault(len(classes), []).append(StepLabels(name, classes))
    fewest = functions.get(min(functions, default=0), [])
    if len(fewest) == 1:
        return fewest[0]
    sources = "several tensors" if fewest else "no tensor"
    return StepLabels(problem=f"the targets of the loss are a function of {sources} in a batch")


def _why_unknown(step: StepWatch, losses: Sequence[FunctionCall]) -> str:
    if losses and step.calls:
        name, output, _ = step.calls[-1]
        returned = f"{repr(name) if name else type(step.model).__name__} returns {_described([output])}"
        given = f"its loss, {losses[-1].name}, is given {_described([losses[-1].input])}"
        return f"{given}, and no module returns that for the images: {returned}. {_NAME_IT}"
    if losses:
        return f"its loss, {losses[-1].name}, was seen, but no module that is called with the images. {_NAME_IT}"
    for loss in step.losses:
        if loss.name in WITHOUT_CLASSES:
            return f"its loss, {loss.name}, compares {WITHOUT_CLASSES[loss.name]}, and knows no classes"
    return f"no loss of classes was seen in a step. {_NAME_IT}"


def _described(outputs: Iterable[Any]) -> str:
    texts = list[str]()
    for output in outputs:
        parts = [f"'{name}' {tuple(tensor.shape)}" for name, tensor in named_tensors(output) if name]
        shape = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        texts.append(shape + (f" with {', '.join(parts)}" if parts else ""))
    return ", ".join(texts)
