"""Begin a stage of a Trainer, and check that it has what a callback needs."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_anomaly.callbacks._logged_values import LoggedValues


class MisconfiguredTrainer(MisconfigurationException, ValueError):
    """Lightning's exception, and a ValueError for `pytorch_lightning`, which has another one of that name."""


def begin_stage(callback: Any, trainer: Any, stage: str) -> None:
    """Reset a callback if a fit begins at step 0; a checkpoint, which is loaded next, continues another.

    A Trainer that has fitted before goes on from its last step. The callback warns again if a module is validated.
    """
    callback._fitting = stage == "fit"  # None before a first stage
    if not callback._fitting:
        callback._guard.forget_warnings()
    elif trainer.global_step == 0:
        callback._reset()


def check_logging(callback: Any, trainer: Any, pl_module: Any, stage: str) -> None:
    """Raise if another callback logs under the same prefix, or if a process may have no validation batch."""
    prefix = callback.log_key_prefix
    for other in trainer.callbacks:
        values = vars(other).get("_values")
        if other is not callback and isinstance(values, LoggedValues) and values.prefix == prefix:
            needed = "Parameter `log_key_prefix` should be different for each callback of a Trainer"
            raise MisconfiguredTrainer(f"{needed}. Found {prefix!r} twice.")
    flag = "allow_zero_length_dataloader_with_multiple_devices"
    owners = (pl_module, trainer.datamodule) if stage in ("fit", "validate") and trainer.world_size > 1 else ()
    if any(getattr(owner, flag, False) for owner in owners):
        name = type(callback).__name__
        raise MisconfiguredTrainer(f"{name} needs validation batches in every process. Found `{flag} = True`.")


def find_callback(trainer: Any, kind: type[Any], needed_by: str = "") -> Any:
    """Return the Trainer's first callback of a kind; without one raise if it is `needed_by` another, or return None."""
    found = next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)
    if found is None and needed_by:
        sentence = f"{needed_by} should be used with {kind.__name__} among the Trainer's callbacks. Found none."
        raise MisconfiguredTrainer(sentence)
    return found
