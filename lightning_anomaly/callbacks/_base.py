"""The base class of the callbacks: one guard around their hooks."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

from torch import Tensor

from lightning_anomaly.callbacks._trees import AnyCallback
from lightning_anomaly.checks import check_text
from lightning_anomaly.distributed import rank_and_world
from lightning_anomaly.settings import AnalysisSettings

Hook = TypeVar("Hook", bound=Callable[..., None])


class GuardedCallback(AnyCallback):
    """An exception in a hook becomes one warning; state is dropped when another module is fitted.

    Attributes:
        on_error: "raise" lets an exception pass.
    """

    on_error = "warn"
    _module: weakref.ref[Any] | None = None  # the one that was fitted
    _present: weakref.ref[Any] | None = None  # the one that the Trainer has now
    _fitting: bool | None = None  # None before `setup`

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_module": None, "_present": None}  # a weak reference cannot be copied

    def __repr__(self) -> str:
        """The arguments that are not the defaults; of a tensor its shape."""
        shown = []
        for name, parameter in signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if isinstance(value, Tensor):
                shown.append(f"{name}=<{tuple(value.shape)}>")
            elif value not in (parameter.default, AnalysisSettings(), []):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _forget(self) -> None:
        """Drop all state: another module is fitted."""
        self._warned: set[str] = set()

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a checkpoint that is only validated or tested changes nothing."""
        if self._fitting is not False:
            self._forget()
            self._restore(state_dict)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin a fit, a validation or a test; a fit drops what is known of another module."""
        self._fitting = stage == "fit"
        self._present = weakref.ref(pl_module)
        if self._fitting:
            if self._module is None or self._module() is not pl_module:
                self._forget()
            self._module = self._present
        super().setup(trainer, pl_module, stage)

    @contextmanager
    def _guard(self, task: str, consequence: str = "") -> Iterator[None]:
        """Turn an exception into one warning, or let it pass with `on_error = "raise"`."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            problem = f"{type(error).__name__}: {error}"
            self._warn_once(task + consequence, f"{type(self).__name__} could not {task} ({problem}).{consequence}")

    def _warn_once(self, key: str, message: str) -> None:
        """Warn in the first process, unless something with this key has been said."""
        if key not in self._warned:
            self._warned.add(key)
            if rank_and_world()[0] == 0:
                warnings.warn(message, stacklevel=2)


def guarded(hook: Hook) -> Hook:
    """Run a hook of a callback behind its guard."""

    @wraps(hook)
    def run(self: GuardedCallback, *args: Any, **kwargs: Any) -> None:
        with self._guard(f"run `{hook.__name__}`"):
            hook(self, *args, **kwargs)

    return cast(Hook, run)


class LoggingCallback(GuardedCallback):
    """Log the same values in all processes, with keys that begin with a prefix."""

    def __init__(self, log_key_prefix: str) -> None:
        super().__init__()
        self.log_key_prefix = check_text("log_key_prefix", log_key_prefix)

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{type(self).__name__}[{self.log_key_prefix}]"
        # Contains `id(self)` until `setup`, which gives a clearer error than the Trainer for two equal ones.
        return f"{key} {id(self)}" if self._fitting is None else key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that no other callback logs under the same keys, and that all processes have validations."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            self._warned.clear()  # another module may be validated
        for twin in trainer.callbacks:
            if isinstance(twin, LoggingCallback) and twin is not self and twin.log_key_prefix == self.log_key_prefix:
                raise ValueError(
                    "Parameter `log_key_prefix` should be different for each callback of a Trainer. "
                    f"Found {self.log_key_prefix!r} twice."
                )
        flag = "allow_zero_length_dataloader_with_multiple_devices"
        owners = (pl_module, trainer.datamodule) if stage in ("fit", "validate") and trainer.world_size > 1 else ()
        if any(getattr(owner, flag, False) for owner in owners):
            name = type(self).__name__
            raise ValueError(f"{name} needs validation batches in every process. Found `{flag} = True`.")

    @guarded
    def _log(
        self, trainer: Any, pl_module: Any, values: Mapping[str, float], prog_bar: str = "", suffix: str = ""
    ) -> None:
        """Log the values of a validation, the same in all processes, as PREFIX + SUFFIX / NAME."""
        for name, value in values.items():
            # The largest of equal numbers is that number, without the rounding of a mean.
            pl_module.log(f"{self.log_key_prefix}{suffix}/{name}", value, on_step=False, on_epoch=True, batch_size=1,
                          prog_bar=name == prog_bar, sync_dist=True, reduce_fx="max")  # fmt: skip


def logged_step(trainer: Any) -> int:
    """The step where Lightning puts what a validation of a fit logs; call it behind the guard."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def find_callback(trainer: Any, kind: type[LoggingCallback], prefix: str | None, asking: str) -> Any:
    """Find a Trainer's callback of a kind, with this `log_key_prefix` or the first."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    for callback in found:
        if prefix in (None, callback.log_key_prefix):
            return callback
    wanted = "" if prefix is None else f" with `log_key_prefix = {prefix!r}`"
    raise ValueError(
        f"{asking} should be used with {kind.__name__}{wanted} among the Trainer's callbacks. "
        f"Found {[callback.log_key_prefix for callback in found] or 'none'}."
    )
