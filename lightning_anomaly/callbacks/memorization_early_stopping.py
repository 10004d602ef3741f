"""Early stopping by a gap between training and validation images that the validation loss confirms."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from lightning_anomaly._internal.checks import check_integer, check_text
from lightning_anomaly._internal.processes import gather_results
from lightning_anomaly.callbacks._guard import OnError
from lightning_anomaly.callbacks._losses import validation_losses
from lightning_anomaly.callbacks._stopping_callback import StoppingCallback, patience_in_words
from lightning_anomaly.callbacks.memorization import MemorizationCallback
from lightning_anomaly.memorization.stop_rule import GAP, LOSS_PATIENCE, WINDOW, loss_trend


class MemorizationEarlyStopping(StoppingCallback):
    """Stop a run when the network knows its training images and the validation loss no longer improves.

    It waits for two things:

    1. A gap: `rise` of the first `MemorizationCallback` exceeds 5%, and chance does not explain it. A gap alone
       is not yet harm: with few images a network improves on validation images long after it opens.
    2. The exponential average of the validation loss has not improved for three validations.

    It needs to see a run from its beginning, and about 1,000 images of each kind. The weights stay those of the last
    epoch: use a `ModelCheckpoint` too. An `EarlyStopping` from a module's `configure_callbacks` replaces this one:
    return both there.

    Args:
        threshold: The gap to exceed, as a fraction of its lowest level.
        patience: Number of validations without a lower average of the loss.
        verbose: Whether it logs its rule and its reason; `stopping_reason_message` has the reason in any case.
        confirm: Name of the logged metric that has to confirm the gap; lower is better. "auto" finds the validation
            loss by its name; if there is none, or several fit, it warns and does not stop.
        on_error: What to do when one of its hooks fails: "warn" once and go on, or "raise" the error.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is not allowed, or the Trainer has no such `MemorizationCallback`.
    """

    _watched_type = MemorizationCallback
    _measured_key = "compares_output"

    def __init__(
        self,
        threshold: float = GAP,
        patience: int = LOSS_PATIENCE,
        verbose: bool = True,
        confirm: str = "auto",
        on_error: OnError = "warn",
    ) -> None:
        self.confirm = check_text("confirm", confirm)
        super().__init__(threshold, check_integer("patience", patience, 1), verbose, on_error)

    def _reset(self) -> None:
        super()._reset()
        self._loss: str | None = None  # name of the confirming metric
        self._losses: list[float] = []  # its value at each validation that has one

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs, in plain types."""
        return {**super().state_dict(), "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless the checkpoint is only validated or tested."""
        super().load_state_dict(state_dict)
        if self._fitting is not False:
            self._losses = list(state_dict["losses"])

    @property
    def waiting_for(self) -> str:
        """What it has not seen yet, in words, without which it does not stop the run."""
        if not self._rises:
            return "a comparison"
        if self._rises[-1] <= self.threshold:
            return "a gap"
        return "a validation loss" if self._loss is None else f"`{self._loss}` stop improving"

    def _take_loss(self, metrics: Mapping[str, Any]) -> None:
        auto = self.confirm == "auto"
        names = validation_losses(metrics) if auto else [name for name in metrics if name == self.confirm]
        if self._loss is None and len(names) == 1:
            (self._loss,) = names
        loss = float(metrics[self._loss]) if self._loss is not None and self._loss in metrics else None
        # Each process has the loss of its validation images.
        losses = [value for value in gather_results(lambda: loss) if value is not None]
        if losses:
            self._losses.append(fmean(losses))
        else:
            missing = "no validation loss" if auto else f"no '{self.confirm}'"
            problem = f"several validation losses, {names}," if names else missing
            self._guard.warn(
                "no loss",
                f"Found {problem} among the logged metrics, so the run is not stopped: name one as `confirm`.",
            )

    def _stopping_rule(self) -> str:
        loss = "a validation loss" if self._loss is None else f"the smoothed '{self._loss}'"
        return (
            f"watches '{self.monitor}' and stops the run when it is above {self.threshold:g} and {loss} has not "
            f"improved for {patience_in_words(self.patience)}, after {max(WINDOW, self.patience) + 1} validations at "
            "the earliest"
        )

    def _reason_to_stop(self, metrics: Mapping[str, Any], measured: bool) -> str | None:
        self._take_loss(metrics)
        trend = loss_trend(self._losses)
        self.wait_count = trend.waited
        if not self._rises or not trend.stalled(self.patience) or self._rises[-1] <= self.threshold:
            return None
        return (
            "The network knows its training images: the ratio of errors that it expects on validation and on training "
            f"images is {100 * self._rises[-1]:.0f}% above its lowest level. {self.monitor} = {self._rises[-1]:.3f} is "
            f"above {self.threshold:g}, and the smoothed '{self._loss}', now {trend.average:.4g}, has not improved for "
            f"{patience_in_words(trend.waited)}."
        )
