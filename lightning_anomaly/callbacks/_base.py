"""The base classes of the callbacks: guard the hooks, and log values."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from lightning_anomaly._internal.checks import check_text
from lightning_anomaly._internal.processes import rank_and_world
from lightning_anomaly.callbacks._trees import AnyCallback

Hook = TypeVar("Hook", bound=Callable[..., None])


class GuardedCallback(AnyCallback):
    """An exception in a hook becomes one warning; state is dropped when another module is fitted.

    Attributes:
        on_error: "warn", or "raise" to let exceptions pass.
    """

    on_error = "warn"
    _fitted_module: weakref.ref[Any] | None = None  # of the last fit
    _current_module: weakref.ref[Any] | None = None  # of the Trainer
    _fitting: bool | None = None  # None before `setup`

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fitted_module": None, "_current_module": None}  # a weak reference cannot be copied

    def _forget(self) -> None:
        """Drop all state."""
        self._warned: set[str] = set()

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless the checkpoint is only validated or tested."""
        if self._fitting is not False:
            self._forget()
            self._restore(state_dict)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Drop the state if another module is fitted than before."""
        self._fitting = stage == "fit"
        self._current_module = weakref.ref(pl_module)
        if self._fitting:
            if self._fitted_module is None or self._fitted_module() is not pl_module:
                self._forget()
            self._fitted_module = self._current_module
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
            self._warn_once(task + consequence, f"Could not {task} ({problem}).{consequence}")

    def _warn_once(self, key: str, message: str) -> None:
        """Warn in process 0, once for each key, by the name of this callback."""
        if key not in self._warned:
            self._warned.add(key)
            if rank_and_world()[0] == 0:
                warnings.warn(f"{type(self).__name__}: {message}", stacklevel=2)


def guarded(hook: Hook) -> Hook:
    """Run a hook of a callback behind its guard."""

    @wraps(hook)
    def run(self: GuardedCallback, *args: Any, **kwargs: Any) -> None:
        with self._guard(f"run `{hook.__name__}`"):
            hook(self, *args, **kwargs)

    return cast(Hook, run)


class LoggingCallback(GuardedCallback):
    """Log the same values in all processes, under keys with the callback's prefix."""

    def __init__(self, log_key_prefix: str) -> None:
        super().__init__()
        self.log_key_prefix = check_text("log_key_prefix", log_key_prefix)

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{type(self).__name__}[{self.log_key_prefix}]"
        # Contains `id(self)` until `setup`, whose error for two equal prefixes is clearer than the Trainer's.
        return f"{key} {id(self)}" if self._fitting is None else key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise if another callback logs under the same keys, or a process may have no validation batch."""
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
    def _log(self, pl_module: Any, values: Mapping[str, float], prog_bar: str = "") -> None:
        """Log values, equal in all processes, as PREFIX/NAME or PREFIX_layers/NAME, and one in the progress bar."""
        for name, value in values.items():
            # The maximum of equal numbers is exact, their mean is rounded.
            pl_module.log(self._key(name), value, on_step=False, on_epoch=True, batch_size=1,
                          prog_bar=name == prog_bar, sync_dist=True, reduce_fx="max")  # fmt: skip

    def _key(self, name: str) -> str:
        """Return the key under which a value is logged."""
        layers, layer = "_layers" * name.startswith("layer/"), name.removeprefix("layer/")
        return f"{self.log_key_prefix}{layers}/{layer}"


def logged_step(trainer: Any) -> int:
    """Return the step at which Lightning logs a validation of a fit. The attribute is private: call it guarded."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def find_callback(trainer: Any, kind: type[LoggingCallback], prefix: str | None, needed_by: str) -> Any:
    """Return the Trainer's callback of a kind with this `log_key_prefix`, or the first of the kind."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    for callback in callbacks:
        if prefix in (None, callback.log_key_prefix):
            return callback
    condition = "" if prefix is None else f" with `log_key_prefix = {prefix!r}`"
    raise ValueError(
        f"{needed_by} should be used with {kind.__name__}{condition} among the Trainer's callbacks. "
        f"Found {[callback.log_key_prefix for callback in callbacks] or 'none'}."
    )
