"""Fits with a given anomaly fraction at each validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from trainers import SmallNet, loader, quiet_trainer

from lightning_anomaly import AnomalyEarlyStopping, AnomalyFilterCallback
from lightning_anomaly.filters.fraction_rise import fraction_rise


class Scripted(AnomalyFilterCallback):
    """Logs a given signal instead of an analysis; None is a failed analysis, for which the last value is logged."""

    def __init__(self, signal: Sequence[float | None], **options: Any) -> None:
        super().__init__(log_figures=False, **options)
        self.signal = signal

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        signal = self.signal[len(self.history)]
        place = {"epoch": trainer.current_epoch, "logged": {}}
        self.history.append(
            {**place, "signal": signal, "analyzed": signal is not None, "clustered": signal is not None}
        )
        value = fraction_rise([entry["signal"] for entry in self.history if entry["clustered"]])
        pl_module.log(f"{self.log_key_prefix}/rise", value, on_step=False, on_epoch=True, batch_size=1)


def run(
    folder: Path, signal: Sequence[float | None], *callbacks: Any, **options: Any
) -> tuple[AnomalyEarlyStopping, pl.Trainer]:
    """Fit for as many validations as the signal has values, unless something stops the run."""
    stopping = AnomalyEarlyStopping(**options)
    trainer = quiet_trainer(
        folder,
        stopping,
        *callbacks,
        Scripted(signal),
        max_epochs=len(signal),
        limit_train_batches=1,
        limit_val_batches=1,
    )
    trainer.fit(SmallNet(), loader(4), loader(4))
    return stopping, trainer


def validations(trainer: pl.Trainer) -> int:
    (watching,) = (callback for callback in trainer.callbacks if isinstance(callback, Scripted))
    return len(watching.history)
