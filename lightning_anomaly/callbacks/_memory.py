"""What a fit remembers of its validations: the values logged last, and what was found in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_anomaly.callbacks._sustained_rise import rise
from lightning_anomaly.report import AnomalyReport

__all__ = ["FitMemory"]

_ZEROS = {**AnomalyReport({}, 0).metrics(), "rise": 0.0, "seconds": 0.0}  # what is logged where nothing was analysed


class FitMemory:
    """What an `AnomalyFilterCallback` remembers of a fit, also through a checkpoint.

    Attributes:
        history: An entry for each validation, see there.
        validations: How many all processes have run.
        has_found: Whether one of them could find something.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.validations = 0
        self.has_found = False
        self._metrics = dict(_ZEROS)
        self._first = 0  # entry of the history whose signal can be compared with the last one's,
        self._kind: list[Any] | None = None  # by what it is the signal of; None if that is not known

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        own = {"validations": self.validations, "metrics": dict(self._metrics), "found": self.has_found}
        return {"history": list(self.history), **own, "comparable": [self._first, self._kind]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        # Checkpoints of release 0.1 do not say what was live.
        self.history = [{"live": entry["analysed"], **entry} for entry in state_dict["history"]]
        self._first, self._kind = state_dict.get("comparable", [0, None])
        self.validations = int(state_dict["validations"])
        self._metrics = dict(state_dict["metrics"])
        self.has_found = bool(state_dict.get("found", any(entry["analysed"] for entry in self.history)))

    def last_values(self, layers: Iterable[str] | None) -> dict[str, float]:
        """The values logged last, 0 where there are none, for these layers; None for those that there were."""
        if layers is None:
            return dict(self._metrics)
        # A key that comes and goes would stop the training at a ModelCheckpoint or EarlyStopping that reads it. Layers
        # that only the model of an earlier fit or of a checkpoint had are gone for good.
        keys = [*_ZEROS, *(f"layer/{name}" for name in layers)]
        return {key: self._metrics.get(key, 0.0) for key in keys}

    def add(
        self,
        trainer: Any,
        values: dict[str, float],
        report: AnomalyReport | None,
        signal_layers: list[str] | None,
        probe: str,
    ) -> None:
        """Remembers a validation.

        Args:
            trainer: The Trainer.
            values: What is to be logged of it; its `rise` is set here.
            report: What was found; None if the last values are repeated.
            signal_layers: See `AnomalyFilterCallback`.
            probe: See there. A fraction of other layers or another probe, or by other settings, has no earlier level.
        """
        # Without an analysis what was found last still holds.
        last: dict[str, Any] = self.history[-1] if self.history else {"signal": 0.0, "anomaly_filters": {}}
        signal, found, live = last["signal"], last["anomaly_filters"], False
        if report is not None:
            found, layers = report.anomaly_filters, signal_layers or list(report.layers)
            live = bool(report.live_in(layers))
            if live:  # else the layers are not in use yet, say: no level from which a fraction could rise
                signal = report.fraction_in(layers)
                kind = [probe, report.n_samples, repr({**report.settings, "engine": None}), sorted(layers)]
                if self._kind not in (None, kind):
                    self._first = len(self.history)
                self._kind = kind
                # What is only repeated must not look sustained.
                values["rise"] = rise(
                    [*(entry["signal"] for entry in self.history[self._first :] if entry["live"]), signal]
                )
        self._metrics = values
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "metrics": dict(values),
                "analysed": report is not None,
                "live": live,
                "signal": signal,
                "anomaly_filters": found,
            }
        )
