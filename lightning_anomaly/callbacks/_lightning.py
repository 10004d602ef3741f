"""What callbacks need of Lightning: base classes for both of its packages, how a stage begins, and checks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning_utilities.core import rank_zero

from lightning_anomaly.callbacks._guard import Guard, OnError
from lightning_anomaly.callbacks._logging import LoggedValues
from lightning_anomaly.callbacks._run_loss import RunLoss

# Both packages log through this module, and the last one imported takes it over: undo that.
_before = {name: getattr(rank_zero, name) for name in ("log", "rank_zero_deprecation_category")}
from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch.callbacks import Callback, EarlyStopping  # noqa: E402

if "pytorch_lightning" in sys.modules:
    vars(rank_zero).update(_before)


class AnyCallback(Callback):
    """A callback of `lightning`, and of `pytorch_lightning` if that is imported: Trainers take only their own."""

    _fitting: bool | None = None  # see `begin_stage`

    def __init__(
        self, log_key_prefix: str, neutral: Mapping[str, float], on_error: OnError, in_progress_bar: str = ""
    ) -> None:
        _add_other_bases()
        super().__init__()
        self._guard = Guard(self, on_error)
        self._values = LoggedValues(log_key_prefix, neutral, in_progress_bar)
        self.log_key_prefix = self._values.prefix

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse another callback with this prefix, and processes without validation batches; begin the stage."""
        others = [other for other in trainer.callbacks if isinstance(other, AnyCallback) and other is not self]
        if self.log_key_prefix in [other.log_key_prefix for other in others]:
            needed = "Parameter `log_key_prefix` should be different for each callback of a Trainer"
            raise MisconfiguredTrainer(f"{needed}. Found {self.log_key_prefix!r} twice.")
        flag = "allow_zero_length_dataloader_with_multiple_devices"
        owners = (pl_module, trainer.datamodule) if stage in ("fit", "validate") and trainer.world_size > 1 else ()
        if any(getattr(owner, flag, False) for owner in owners):
            name = type(self).__name__
            raise MisconfiguredTrainer(f"{name} needs validation batches in every process. Found `{flag} = True`.")
        RunLoss.of(trainer).forget()
        begin_stage(self, trainer, stage)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch no step that never ended, as after an `on_train_batch_start` that returns -1."""
        RunLoss.of(trainer).remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Watch no step that failed."""
        RunLoss.of(trainer).remove()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Watch no step any longer."""
        RunLoss.of(trainer).remove()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{type(self).__name__}[{self.log_key_prefix}]"
        # Contains an identity until `setup`, whose error for two equal prefixes is clearer than the Trainer's.
        return f"{key} {id(self)}" if self._fitting is None else key


class AnyEarlyStopping(EarlyStopping):
    """An `EarlyStopping` of the same packages."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _add_other_bases()
        super().__init__(*arguments, **options)


def _add_other_bases() -> None:
    """Add the bases of `pytorch_lightning`, if that is imported already: importing it here would take over the log."""
    other: Any = sys.modules.get("pytorch_lightning.callbacks")
    if other is not None and not issubclass(AnyCallback, other.Callback):
        # Ends the chain of `super().__init__()`: its class would set the same attributes again.
        last = type("EarlyStopping", (other.EarlyStopping,), {"__init__": lambda self: None})
        AnyCallback.__bases__ = (Callback, other.Callback)
        AnyEarlyStopping.__bases__ = (EarlyStopping, last)


_add_other_bases()  # for LightningCLI, which looks at the class before it makes one


class MisconfiguredTrainer(MisconfigurationException, ValueError):
    """Lightning's exception, and a ValueError for `pytorch_lightning`, which has another one of that name."""


def begin_stage(callback: Any, trainer: Any, stage: str) -> None:
    """Reset a callback if a fit begins at step 0, before a checkpoint is loaded; let it warn again outside of a fit."""
    callback._fitting = stage == "fit"  # None before a first stage
    if not callback._fitting:
        callback._guard.forget_warnings()
    elif trainer.global_step == 0:
        callback._reset()


def find_callback(trainer: Any, kind: type[Any], needed_by: str = "") -> Any:
    """Return the Trainer's first callback of a kind; without one raise if it is `needed_by` another, or return None."""
    first = next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)
    if first is None and needed_by:
        sentence = f"{needed_by} should be used with {kind.__name__} among the Trainer's callbacks. Found none."
        raise MisconfiguredTrainer(sentence)
    return first
