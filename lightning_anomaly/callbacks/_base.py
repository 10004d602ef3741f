"""The base class of the callbacks: one guard around their hooks, for both of Lightning's package trees."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from lightning_anomaly.checks import check_text
from lightning_anomaly.distributed import rank_and_world
from lightning_anomaly.notes import merge_notes
from lightning_anomaly.settings import AnalysisSettings

__all__ = [
    "AnyEarlyStopping",
    "GuardedCallback",
    "LoggingCallback",
    "all_validate",
    "describe_dead_monitors",
    "guarded",
    "logged_step",
    "until_validation_end",
]


Hook = TypeVar("Hook", bound=Callable[..., None])


# `lightning.pytorch` and `pytorch_lightning` are two class trees; a Trainer of either only accepts its own classes.
if TYPE_CHECKING or find_spec("pytorch_lightning") is None:

    class AnyCallback(Callback):
        """A callback for `lightning.pytorch`."""

    class AnyEarlyStopping(EarlyStopping):
        """An `EarlyStopping` for `lightning.pytorch`."""

else:
    import pytorch_lightning.callbacks as other

    class AnyCallback(Callback, other.Callback):
        """A callback for `lightning.pytorch` and `pytorch_lightning`."""

    class _Other(other.EarlyStopping):
        """Ends the chain of `super().__init__()`: this tree's class would set the same attributes again."""

        def __init__(self) -> None:
            pass

    class AnyEarlyStopping(EarlyStopping, _Other):
        """An `EarlyStopping` for `lightning.pytorch` and `pytorch_lightning`."""


class GuardedCallback(AnyCallback):
    """Base class with the guard, where what fails in a hook becomes one warning, and with what is known of a module."""

    on_error = "warn"  # or "raise"
    _warned: set[str]
    _failure: Exception | None = None  # of the validation that runs
    _module: weakref.ref[Any] | None = None  # that what is known is about
    _present: weakref.ref[Any] | None = None  # the module that the Trainer works with
    _fitting = True

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
        """Start anew: what is known is about another module."""

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a checkpoint that is only validated or tested changes nothing."""
        if self._fitting:
            self._forget()
            self._restore(state_dict)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin a fit, a validation or a test; a fit drops what is known of another module."""
        self._fitting = stage == "fit"
        self._failure = None
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
            text = f"{type(self).__name__} could not {task} ({type(error).__name__}: {error}){consequence}"
            self._warn_once(task + consequence, f"{text.removesuffix('.')}.")

    def _warn_once(self, key: str, message: str) -> None:
        """Warn in the first process, unless something with this key has been said."""
        if key not in self._warned:
            self._warned.add(key)
            if rank_and_world()[0] == 0:
                warnings.warn(message, stacklevel=2)

    def _release(self) -> None:
        """Remove hooks and drop what a validation has taken."""

    def _raise_failure(self) -> None:
        """Raise what failed in this validation; the next one starts without it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def guarded(hook: Hook) -> Hook:
    """Run a hook of a callback behind its guard."""

    @wraps(hook)
    def run(self: GuardedCallback, *args: Any, **kwargs: Any) -> None:
        with self._guard(f"run `{hook.__name__}`"):
            hook(self, *args, **kwargs)

    return cast(Hook, run)


def until_validation_end(hook: Hook) -> Hook:
    """Keep an exception of a validation's hook in `_failure` until the validation ends, and skip the hooks between.

    All processes meet there: one that fails earlier would leave the others waiting.
    """

    @wraps(hook)
    def run(self: GuardedCallback, *args: Any, **kwargs: Any) -> None:
        if self._failure is None:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                # The frames of a traceback would keep the tensors of what failed.
                self._failure = error if self.on_error == "raise" else error.with_traceback(None)
                with suppress(Exception):
                    self._release()

    return cast(Hook, run)


class _OwnKey(str):
    """A state key unlike that of any other callback: a Trainer leaves it to `setup` to explain two that are equal."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return not isinstance(other, _OwnKey) and str.__eq__(self, other)


class LoggingCallback(GuardedCallback):
    """Base class with prefixed, rank-synchronized logging and each warning once."""

    _state_name: str  # also of a subclass

    def __init__(self, log_key_prefix: str) -> None:
        self.log_key_prefix = check_text("log_key_prefix", log_key_prefix)
        self._set_up = False
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{self._state_name}[{self.log_key_prefix}]"
        return key if self._set_up else _OwnKey(key)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that no other callback logs under the same keys."""
        super().setup(trainer, pl_module, stage)
        self._set_up = True
        if stage != "fit":
            self._warned.clear()  # what was said may be of another module
        for twin in trainer.callbacks:
            if isinstance(twin, LoggingCallback) and twin is not self and twin.log_key_prefix == self.log_key_prefix:
                raise ValueError(
                    "Parameter `log_key_prefix` should be different for each callback of a Trainer. "
                    f"Found {self.log_key_prefix!r} twice."
                )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check names of layers, now that `setup` and `configure_model` of the module have built them."""
        super().on_fit_start(trainer, pl_module)
        self._check_layers(pl_module)

    def _check_layers(self, pl_module: Any) -> None:
        """Raise ValueError for names of layers that the model does not have."""

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if nothing will be found."""
        self._warn_of_no_validation(trainer)

    def _warn_of_no_validation(self, trainer: Any) -> None:
        """Warn if there are no validations, or none that all processes run."""
        problem = ""
        if not all_validate(trainer):
            problem = (
                "some process may have none: give each a validation batch, and do not set "
                "`allow_zero_length_dataloader_with_multiple_devices`"
            )
        elif not trainer.enable_validation:
            problem = "this Trainer has none: no validation loader, no `validation_step`, or `limit_val_batches = 0`"
        if problem and not trainer.barebones:
            text = f"{self._state_name} works at validations, and {problem}. It will find nothing."
            self._warn_once("no validation", text + describe_dead_monitors(trainer, self.log_key_prefix))

    @guarded
    def _log(
        self, trainer: Any, pl_module: Any, values: Mapping[str, float], prog_bar: str = "", suffix: str = ""
    ) -> None:
        """Log values of a validation, which are the same in all processes, under the prefix and a suffix of it."""
        together = all_validate(trainer)
        for name, value in values.items():
            # The largest of equal numbers is that number, without the rounding of a mean.
            pl_module.log(f"{self.log_key_prefix}{suffix}/{name}", value, on_step=False, on_epoch=True, batch_size=1,
                          prog_bar=name == prog_bar, sync_dist=together, reduce_fx="max")  # fmt: skip

    def _warn_each_once(self, notes: Mapping[str, str]) -> None:
        """Warn of those notes of a report that have not been said."""
        new = {key: note for key, note in notes.items() if key not in self._warned}
        for key, note in merge_notes(new).items():
            self._warn_once(key, note)
        self._warned.update(new)


def logged_step(trainer: Any) -> int:
    """The step where Lightning puts what a validation of a fit logs; call it behind the guard."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def all_validate(trainer: Any) -> bool:
    """Whether all processes run the hooks of validations: with this flag, one without batches runs none."""
    flag = "allow_zero_length_dataloader_with_multiple_devices"
    return trainer.world_size == 1 or not (
        getattr(trainer.lightning_module, flag, False) or getattr(trainer.datamodule, flag, False)
    )


def describe_dead_monitors(trainer: Any, prefix: str) -> str:
    """Name the keys `prefix/...` that callbacks monitor where nothing is watched, in a sentence with a space before it.

    With finite patience an EarlyStopping stops a training for nothing, so not "never fires".
    """
    keys = {key for key in (getattr(own, "monitor", None) for own in trainer.callbacks) if isinstance(key, str)}
    own = ", ".join(f"'{key}'" for key in sorted(keys) if key.startswith(f"{prefix}/"))
    return f" What monitors {own} waits in vain." if own else ""
