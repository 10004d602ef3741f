"""What the steps of a run tell of its loss: the output that it is given, and the labels."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.network.loss_watch import StepWatch
from lightning_anomaly.network.step_loss import StepLabels, StepLoss, form_of, tell_loss


class RunLoss:
    """Watches the first validation step of a run, and the first training step where that has not told all."""

    def __init__(self, logits_from: str | None = None) -> None:
        self._logits_from = logits_from
        self._watch = StepWatch()
        self.forget()

    def forget(self) -> None:
        """Forget the run."""
        self.remove()
        self._told: dict[str, StepLoss | None] = {}  # by the kind of step, "train" or "val"

    def remove(self) -> None:
        """Watch no longer; a second call does nothing."""
        self._watch.remove()
        self._watch = StepWatch()

    def watch(self, kind: str, pl_module: Any, batch: Any) -> None:
        """Watch a step until `take` or `remove`, unless one of its kind was watched or need not be."""
        val = self._told.get("val")
        all_told = val is not None and val.scores is not None and val.labels.classes is None
        if kind not in self._told and not (all_told and val is not None and val.form == form_of(batch)):
            self._told[kind] = None
            self._watch.attach(pl_module, batch)

    def take(self, kind: str) -> None:
        """Take what the step has told, if it was watched."""
        watch = self._watch
        if watch.attached:
            self.remove()
            self._told[kind] = tell_loss(watch, self._logits_from)

    @property
    def told(self) -> StepLoss:
        """What is known of the output: by the validation step, or else by the training step."""
        told = [step for kind in ("val", "train") if (step := self._told.get(kind)) is not None]
        known = [step for step in told if step.scores is not None] or told
        nothing = "no step was seen"
        return known[0] if known else StepLoss(None, StepLabels(problem=nothing), problem=nothing)

    def labels(self, kind: str) -> StepLabels:
        """Return where items of a kind have their labels; a step of the other kind tells too if their form is alike."""
        own, other = self._told.get(kind), self._told.get("train" if kind == "val" else "val")
        if own is None or other is None:
            return (own or other or self.told).labels
        if own.form != other.form or (other.labels.problem and not own.labels.problem):
            return own.labels
        if own.labels.problem or own.labels.classes is None or own.labels.column != other.labels.column:
            return other.labels if own.labels.problem else own.labels
        classes = {**(other.labels.classes or {}), **own.labels.classes}
        return own.labels._replace(classes=classes)
