"""What the steps of a run tell of its loss: asked at every validation, once for all callbacks of a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_anomaly.callbacks._logging import without_module_logging
from lightning_anomaly.network.forward import copy_for_model, isolated_calls
from lightning_anomaly.network.layers import find_logits_call, modules_by_name
from lightning_anomaly.network.loss_input import LossInput, find_loss_input
from lightning_anomaly.network.step_labels import StepLabels, TargetColumns, classes_in
from lightning_anomaly.network.step_watch import ModuleCall, StepWatch

_CHECKED = 32  # images of a batch that are run again
_OTHER = {"train": "val", "val": "train"}
_runs: WeakKeyDictionary[Any, RunLoss] = WeakKeyDictionary()


class RunLoss:
    """Watches the first step of each validation, and the first training step after it.

    It belongs to a Trainer and to no callback, so a step is watched once, and no callback holds what cannot be copied.
    """

    def __init__(self) -> None:
        self._watch: StepWatch | None = None
        self._steps: dict[str | None, _Steps] = {}  # by what a user names as what returns logits
        self._train_due, self._most = True, _CHECKED

    @staticmethod
    def of(trainer: Any) -> RunLoss:
        """Return that of a Trainer."""
        return _runs.setdefault(trainer, RunLoss())

    def forget(self) -> None:
        """Forget the run."""
        self.remove()
        self._steps = {named: _Steps(named) for named in self._steps}
        self._train_due = True

    def ask(self, logits_from: str | None, batch_size: int = _CHECKED) -> None:
        """Ask for what the loss is given, an output of what a user names; at most `batch_size` images run at a time."""
        self._most = min(self._most, batch_size)
        self._steps.setdefault(logits_from, _Steps(logits_from))

    def watch(self, kind: str, pl_module: Any, batch: Any) -> None:
        """Watch a step of a kind, "train" or "val", until `take` or `remove`."""
        if self._watch is not None and self._watch.batch is batch:  # another callback has begun
            return
        self.remove()  # of a step that never ended
        if kind == "val" or self._train_due:
            self._watch = StepWatch(pl_module, batch, self._most)
            self._watch.attach()

    def remove(self) -> StepWatch | None:
        """Watch no longer, and return what has watched."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.remove()
        return watch

    def take(self, kind: str, trainer: Any) -> None:
        """Take what the step has told, if it was watched."""
        if (watch := self.remove()) is None:
            return
        self._train_due = kind == "val"

        def run(part: Callable[..., Any], images: Tensor) -> Any:
            context, quiet = trainer.strategy.precision_plugin.forward_context(), without_module_logging(watch.model)
            with torch.inference_mode(False), context, quiet, isolated_calls(watch.model, part) as forward:
                return forward(copy_for_model(images, watch.model))

        for steps in self._steps.values():
            steps.add(kind, watch, run)

    def input(self, logits_from: str | None) -> LossInput:
        """Return what the loss is given: by the validation step, or else by the training step."""
        inputs = self._steps[logits_from].inputs
        return inputs.get("val") or inputs.get("train") or LossInput(None, "no step was seen")

    def labels(self, kind: str, logits_from: str | None) -> StepLabels:
        """Return where items of a kind have their labels; a step of the other kind tells too if their form is alike."""
        return self._steps[logits_from].labels_of(kind)


def part_to_call(model: Any, call: ModuleCall | None, logits_from: str | None) -> Callable[[Tensor], Any]:
    """Return what all images go through: what a user names, or else the module that a step called, called alike."""
    if logits_from is not None or call is None:
        return find_logits_call(model, logits_from)
    module = modules_by_name(model)[call.name]
    return partial(call.again, module) if call.key or call.args or call.kwargs else module


class _Steps:
    """What the last steps have told of one loss."""

    def __init__(self, named: str | None) -> None:
        self._named = named
        self.inputs: dict[str, LossInput] = {}  # by kind
        self._labels: dict[str, StepLabels] = {}
        self._forms: dict[str, tuple[str, ...]] = {}
        self._columns: dict[str, TargetColumns] = {}
        self._classes: set[float] = set()  # some that the loss was given as targets

    def add(self, kind: str, step: StepWatch, run: Callable[[Callable[..., Any], Tensor], Any]) -> None:
        """Add a step, parts of whose model can be run on images."""

        def replay(call: ModuleCall, images: Tensor) -> Any:
            return run(part_to_call(step.model, call, self._named), images)

        try:
            found = find_loss_input(step, replay if kind == "val" else None, self.inputs.get("train"), self._named)
        except Exception as error:
            found = LossInput(None, f"a step cannot be read ({type(error).__name__}: {error})")
        targets = [match.loss for match in found.matches if match.loss.target is not None]
        self._classes.update(*map(classes_in, targets))
        if found.scores is not None and targets and len(self._classes) < 2:
            found = LossInput(None, "the targets of its loss are all of one class so far")
        self.inputs[kind] = found
        if self._forms.get(kind) != step.form:
            self._columns[kind], self._forms[kind] = TargetColumns(), step.form
        labels = self._columns[kind].add(step, found.matches) if found.scores is not None else StepLabels()
        self._labels[kind] = labels._replace(problem=labels.problem or found.problem)

    def labels_of(self, kind: str) -> StepLabels:
        """Return where items of a kind have their labels."""
        own, other = self._labels.get(kind), self._labels.get(_OTHER[kind])
        if own is None or other is None:
            return own or other or StepLabels(problem="no step was seen")
        if self._forms[kind] != self._forms[_OTHER[kind]] or other.problem:
            return own
        if own.problem:
            return other
        return own._replace(classes={**other.classes, **own.classes}) if own.column == other.column else own
