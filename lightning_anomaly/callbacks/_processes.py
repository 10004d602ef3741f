"""What several processes do together: whether all take part, and what the first one decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = [
    "decided_by_first",
    "may_skip_validations",
    "validates_everywhere",
]

T = TypeVar("T")


def may_skip_validations(trainer: Any) -> bool:
    """Whether a process without any validation batch runs no validation, hooks and all; otherwise it is an error.

    Lightning asks the module and the data module. An iterable data set without a length does run its hooks.
    """
    asked = (trainer.lightning_module, trainer.datamodule)
    return trainer.world_size > 1 and any(
        getattr(part, "allow_zero_length_dataloader_with_multiple_devices", False) for part in asked
    )


def validates_everywhere(trainer: Any) -> bool:
    """Whether all processes will run the validations of a fit; all of them call it in `on_train_start`.

    One without any batch may run no validation hooks, and the others must not wait for it there.
    """
    # Where the first epoch ends without a validation the loaders are not there yet, and others may follow these.
    known = trainer.val_dataloaders is not None and not trainer.reload_dataloaders_every_n_epochs
    validates = sum(trainer.num_val_batches) > 0 if known else not may_skip_validations(trainer)
    return bool(trainer.strategy.reduce_boolean_decision(trainer.enable_validation and validates, all=True))


def decided_by_first(trainer: Any, decide: Callable[[], T]) -> T:
    """What process 0 decides, in all of them; all of them call it.

    Raises:
        Exception: If it fails; in the others a RuntimeError, as they would wait for it otherwise.
    """
    decision: T | None = None
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            decision = decide()
        except Exception as error:
            failure = error
    decision, told = trainer.strategy.broadcast((decision, None if failure is None else repr(failure)))
    if told is not None:
        raise failure or RuntimeError(told)
    return cast(T, decision)
