"""What the steps of a run tell of its loss: the output that it is given, and the labels."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.network.loss_watch import StepWatch
from lightning_anomaly.network.step_loss import StepLabels, StepLoss, form_of, tell_loss


class RunLoss:
    """Watches the first validation step of a run, and the first training step where that has not told all."""

    def __init__(self, logits_from: str | None = None) -> None:
        self._logits_from = logits_from
        self._watch: StepWatch | None = None
        self.forget()

    def forget(self) -> None:
        """Forget the run."""
        self.remove()
        self._told: dict[str, StepLoss | None] = {}  # by the kind of step, "train" or "val"

    def remove(self) -> StepWatch | None:
        """Watch no longer, and return what has watched."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.remove()
        return watch

    def watch(self, kind: str, pl_module: Any, batch: Any) -> None:
        """Watch a step until `take` or `remove`, unless one of its kind was watched or need not be."""
        val = self._told.get("val")
        if kind in self._told:
            return
        if val is None or val.scores is None or val.labels.classes is not None or val.form != form_of(batch):
            self._told[kind] = None
            self.remove()  # of a step that never ended
            self._watch = StepWatch(pl_module, batch)
            self._watch.attach()

    def take(self, kind: str) -> None:
        """Take what the step has told, if it was watched."""
        if (watch := self.remove()) is not None:
            self._told[kind] = tell_loss(watch, self._logits_from)

    @property
    def told(self) -> StepLoss:
        """What is known of the output: by the validation step, or else by the training step."""
        told = [step for kind in ("val", "train") if (step := self._told.get(kind)) is not None]
        unknown = StepLoss(None, StepLabels(problem="no step was seen"))
        return next((step for step in told if step.scores is not None), told[0] if told else unknown)

    def labels(self, kind: str) -> StepLabels:
        """Return where items of a kind have their labels; a step of the other kind tells too if their form is alike."""
        own, other = self._told.get(kind), self._told.get("train" if kind == "val" else "val")
        if own is None or other is None:
            return (own or other or self.told).labels
        if own.form != other.form or other.labels.problem:
            return own.labels
        if own.labels.problem:
            return other.labels
        if own.labels.classes is None or own.labels.column != other.labels.column:
            return own.labels
        return own.labels._replace(classes={**(other.labels.classes or {}), **own.labels.classes})
