"""The base class of the callbacks: one guard around their hooks, for both of Lightning's package trees."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lightning.pytorch.callbacks import Callback, EarlyStopping

from lightning_anomaly.checks import check_text
from lightning_anomaly.distributed import rank_and_world
from lightning_anomaly.notes import merge_notes

__all__ = [
    "AnyCallback",
    "AnyEarlyStopping",
    "GuardedHooks",
    "LoggingCallback",
    "Subject",
    "builds_layers_later",
    "describe_dead_monitors",
    "guarded",
    "logged_step",
    "until_validation_end",
    "validates_everywhere",
]


Hook = TypeVar("Hook", bound=Callable[..., None])


class Subject:
    """The module that a callback knows something about, also through a checkpoint.

    Lightning loads the state of a callback before `on_fit_start`: what was loaded is about the module that comes next.
    """

    def __init__(self) -> None:
        self._module: weakref.ref[Any] | None = None
        self._loaded = False
        self._fitting = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_module": None}  # a weak reference cannot be copied

    def begin(self, stage: str) -> None:
        """Begin a fit, a validation or a test."""
        self._fitting = stage == "fit"

    def load(self) -> bool:
        """Whether to take the state of a checkpoint: not of one that is only tested, after a fit."""
        self._loaded = self._fitting or self._module is None
        return self._loaded

    def meet(self, pl_module: Any) -> None:
        """Remember whom a checkpoint was loaded for."""
        if self._loaded:
            self._module, self._loaded = weakref.ref(pl_module), False

    def changes_to(self, pl_module: Any) -> bool:
        """Whether what is known is about another module; from now on it is about this one."""
        self.meet(pl_module)
        before = None if self._module is None else self._module()
        self._module = weakref.ref(pl_module)
        return before is not pl_module


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


class GuardedHooks:
    """The guard of our callbacks: what fails in a hook becomes one warning, and training continues."""

    on_error = "warn"  # or "raise"
    _warned: set[str]
    _failure: Exception | None = None  # of the validation that runs

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
    def run(self: GuardedHooks, *args: Any, **kwargs: Any) -> None:
        with self._guard(f"run `{hook.__name__}`"):
            hook(self, *args, **kwargs)

    return cast(Hook, run)


def until_validation_end(hook: Hook) -> Hook:
    """Keep an exception of a validation's hook in `_failure` until the validation ends, and skip the hooks between.

    All processes meet there: one that fails earlier would leave the others waiting.
    """

    @wraps(hook)
    def run(self: GuardedHooks, *args: Any, **kwargs: Any) -> None:
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


class LoggingCallback(GuardedHooks, AnyCallback):
    """Base class with prefixed, rank-synchronized logging, guarded hooks and each warning once.

    Args:
        log_key_prefix: What the keys of the logged values begin with.

    Raises:
        ValueError: If the prefix is no string, or empty.
    """

    _state_name: str

    def __init__(self, log_key_prefix: str) -> None:
        self.log_key_prefix = check_text("log_key_prefix", log_key_prefix)
        self._set_up = False
        self._everywhere = True
        self._warned: set[str] = set()
        self._subject = Subject()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        key = f"{self._state_name}[{self.log_key_prefix}]"
        return key if self._set_up else _OwnKey(key)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew, and warn if what is found will be lost."""
        self._everywhere = True
        self._failure = None
        self._set_up = True
        self._subject.begin(stage)
        if stage != "fit":
            self._warned.clear()  # what was said may be of another module
        # `ddp_spawn`, `ddp_notebook` and the like: nothing of a callback comes back from the processes they start.
        launcher = type(getattr(trainer.strategy, "launcher", None))
        if any(kind.__name__ == "_MultiProcessingLauncher" for kind in launcher.__mro__):
            self._warn_once(
                "started by Lightning",
                f"{type(self).__name__} works in copies here, in processes that the strategy starts and ends: the one "
                "given to the Trainer stays as it was. Read what you need in a hook, such as `on_fit_end`, or use "
                '`strategy="ddp"` in a script.',
            )

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out whether all processes validate."""
        self._everywhere = validates_everywhere(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remember whom a checkpoint was loaded for."""
        self._subject.meet(pl_module)

    def _check_twins(self, trainer: Any, *kinds: type[LoggingCallback]) -> None:
        """Raise ValueError if another callback of these kinds in the Trainer logs under the same prefix."""
        twins = [c for c in trainer.callbacks if isinstance(c, kinds) and c is not self]
        if any(twin.log_key_prefix == self.log_key_prefix for twin in twins):
            each = " and each ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"Parameter `log_key_prefix` should be different for each {each} of a Trainer. "
                f"Found {self.log_key_prefix!r} twice."
            )

    def _together(self, trainer: Any) -> bool:
        """Whether every process runs the hooks of this validation, so that they can wait for each other in them."""
        return self._everywhere if trainer.state.fn == "fit" else not _may_skip_validations(trainer)

    @guarded
    def _log(self, trainer: Any, pl_module: Any, values: Mapping[str, float], prog_bar: str = "") -> None:
        """Log values of a validation, which are the same in all processes; the one named `prog_bar` there as well."""
        together = self._together(trainer)
        for name, value in values.items():
            # The largest of equal numbers is that number, without the rounding of a mean.
            pl_module.log(f"{self.log_key_prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1,
                          prog_bar=name == prog_bar, sync_dist=together, reduce_fx="max")  # fmt: skip

    def _warn_each_once(self, notes: Mapping[str, str]) -> None:
        """Warn of those notes of a report that have not been said."""
        new = {key: note for key, note in notes.items() if key not in self._warned}
        for key, note in merge_notes(new).items():
            self._warn_once(key, note)
        self._warned.update(new)


def builds_layers_later(pl_module: Any) -> bool:
    """Whether a module has a `setup` or `configure_model` of its own, after which it may have other layers."""
    for hook in ("setup", "configure_model"):
        owner = next((cls for cls in type(pl_module).__mro__ if hook in vars(cls)), None)
        if owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
            return True
    return False


def logged_step(trainer: Any) -> int:
    """The step where Lightning puts what a validation of a fit logs; call it behind the guard."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _may_skip_validations(trainer: Any) -> bool:
    """Whether a process without validation batches skips validations, hooks included; otherwise Lightning raises.

    An iterable data set without a length does run its hooks.
    """
    asked = (trainer.lightning_module, trainer.datamodule)
    return trainer.world_size > 1 and any(
        getattr(part, "allow_zero_length_dataloader_with_multiple_devices", False) for part in asked
    )


def validates_everywhere(trainer: Any) -> bool:
    """Whether all processes will run the validations of a fit; a collective call for `on_train_start`.

    A process without any batch may run no validation hooks, and the others must not wait for it there.
    """
    # Where the first epoch ends without a validation the loaders are not there yet, and others may follow these.
    known = trainer.val_dataloaders is not None and not trainer.reload_dataloaders_every_n_epochs
    validates = sum(trainer.num_val_batches) > 0 if known else not _may_skip_validations(trainer)
    return bool(trainer.strategy.reduce_boolean_decision(trainer.enable_validation and validates, all=True))


def describe_dead_monitors(trainer: Any, prefix: str, part: str = "", but: str | None = None) -> str:
    """Name the callbacks that monitor keys `prefix/part...`, but not `prefix/but...`, where nothing is watched.

    The sentence has a space before it; it is empty if none of the keys is monitored.
    """
    told = []
    for callback in trainer.callbacks:
        key = getattr(callback, "monitor", None)
        if not isinstance(key, str) or (but is not None and key.startswith(f"{prefix}/{but}")):
            continue
        if key.startswith(f"{prefix}/{part}"):
            # Only what stops has patience. With finite patience it stops a training for nothing, so not "never fires".
            fate = "will never have a reason to stop" if hasattr(callback, "patience") else "has nothing to rank by"
            told.append(f"{type(callback).__name__} on '{key}' {fate}")
    return f" {' and '.join(told)}." if told else ""
