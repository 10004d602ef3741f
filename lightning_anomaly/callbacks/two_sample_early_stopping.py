"""Early stopping by a gap between training and validation images that the validation loss confirms."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from lightning_anomaly._internal.checks import check_integer, check_text
from lightning_anomaly._internal.processes import gather_results
from lightning_anomaly.callbacks._loss_names import validation_losses
from lightning_anomaly.callbacks._stopping import StoppingCallback, last_above, validations
from lightning_anomaly.callbacks.two_sample import TwoSampleCallback
from lightning_anomaly.two_sample.rise import WINDOW
from lightning_anomaly.two_sample.stopping import GAP, GAP_ALONE, LOSS_PATIENCE, confirms, loss_trend


class TwoSampleEarlyStopping(StoppingCallback):
    """Stop a run when the network knows its training images and the validation loss no longer improves.

    It waits for two things. First a gap: the errors that the network expects on validation images, divided by those on
    training images, are 5% above their lowest level (`two_sample/confidence_rise` of a `TwoSampleCallback`), and
    chance does not explain it. A gap alone is not yet harm: with few images a network improves on validation images
    long after it opens. So the exponential average of the validation loss must not have improved for three validations
    either.

    It needs to see a run from its beginning, and about 1,000 images of each kind: `docs/results/stopping_output.md`. It
    logs its rule after the first validation, and at the end of the fit why it stopped the run. The weights
    stay those of the last epoch: use a `ModelCheckpoint` too. If a module's `configure_callbacks` returns an
    `EarlyStopping`, return both there, as they replace the Trainer's.

    Args:
        threshold: The gap to exceed, as a fraction of its lowest level; None takes 0.05, and 0.1 with `confirm=None`.
        patience: Number of validations without a lower average of the loss; None takes 3. With `confirm=None`, number
            of validations in a row with a gap; None takes 1.
        reports_from: The `log_key_prefix` of the `TwoSampleCallback` to watch; None takes the first one.
        verbose: Whether it logs its rule and its reason; `stopping_reason_message` has the reason in any case.
        confirm: Name of the logged metric that has to confirm the gap; lower is better. "auto" finds the validation
            loss by its name; if there is none, or several fit, it warns and does not stop. None stops by the gap alone,
            which is too early on small data.

    Raises:
        ValueError: If an argument is not allowed, or the Trainer has no such `TwoSampleCallback`.

    Examples:
        >>> stopping = TwoSampleEarlyStopping(confirm="val/ce")  # used with a `TwoSampleCallback()`
        >>> stopping.threshold, stopping.patience
        (0.05, 3)
    """

    _reader_of = TwoSampleCallback
    _signal = "confidence_rise"
    _measured_key = "compares_output"

    def __init__(
        self,
        threshold: float | None = None,
        patience: int | None = None,
        reports_from: str | None = None,
        verbose: bool = True,
        confirm: str | None = "auto",
    ) -> None:
        self.confirm = None if confirm is None else check_text("confirm", confirm)
        gap, wait = (GAP_ALONE, 1) if confirm is None else (GAP, LOSS_PATIENCE)
        wait = wait if patience is None else check_integer("patience", patience, 1)
        super().__init__(gap if threshold is None else threshold, wait, reports_from, verbose)

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
        if self._module.fitting is not False:
            self._losses = list(state_dict["losses"])

    def _take_metrics(self, metrics: Mapping[str, Any]) -> None:
        if self.confirm is None:
            return
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
                f"Found {problem} among the logged metrics, so the run is not stopped: name one as `confirm`, or "
                "give `confirm=None` to stop by the gap alone.",
            )

    def _rule(self) -> str:
        earliest, wait = WINDOW + self.patience, validations(self.patience)
        condition = f"it has been above {self.threshold:g} for {wait}"
        if self.confirm is not None:
            earliest = max(WINDOW, self.patience) + 1
            loss = "a validation loss" if self._loss is None else f"the smoothed '{self._loss}'"
            condition = f"it is above {self.threshold:g} and {loss} has not improved for {wait}"
        return (
            f"watches '{self.monitor}' and stops the run when {condition}, after {earliest} validations at the earliest"
        )

    def _judge(self, measured: bool) -> str | None:
        if not self._rises or (self.confirm is None and not measured):
            return None
        now, gap, trend = self._rises[-1], f"{self.threshold:g}", loss_trend(self._losses)
        if self.confirm is None:
            self.wait_count = last_above(self._rises, self.threshold)
            if self.wait_count < self.patience:
                return None
            details = f"has been above {gap} for {validations(self.wait_count)}"
        else:
            self.wait_count = 0 if trend is None else trend.waited
            if trend is None or not (now > self.threshold and confirms(trend, self.patience)):
                return None
            details = (
                f"is above {gap}, and the smoothed '{self._loss}', now {trend.average:.4g}, has not improved for "
                f"{validations(trend.waited)}"
            )
        report = self._watched.report
        where = "" if report is None or report.where == "nowhere" else f" The difference shows {report.where}."
        return (
            "The network knows its training images: the ratio of errors that it expects on validation and on training "
            f"images is {100 * now:.0f}% above its lowest level. {self.monitor} = {now:.3f} {details}.{where}"
        )
