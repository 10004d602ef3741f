"""The base class of the callbacks that look for something at validations, and log it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import wraps
from typing import Any, cast

from lightning_anomaly.callbacks._base import Hook, LoggingCallback, guarded
from lightning_anomaly.checks import check_integer
from lightning_anomaly.distributed import gather_results
from lightning_anomaly.notes import merge_notes

_MOST_LAYERS = 12  # that are logged without being asked for


class WatchingCallback(LoggingCallback):
    """Analyze at validations, and log the last values again where an analysis finds nothing.

    A validation calls `_prepare` at its start; at its end `_finish`, `_find` if no process has failed, `_remember` in a
    fit, and `_log_values`.
    """

    _task: str  # what fails, for a warning
    _neutral: dict[str, float]  # what is logged where nothing has been found
    _advice = ""  # where it fails
    _found: tuple[str, ...]  # the entries of a history that say whether a validation found something
    _prog_bar = ""  # the value that a progress bar shows
    history: list[Any]
    layers: list[str] | None

    def __init__(self, log_key_prefix: str, every_n_validations: int) -> None:
        super().__init__(log_key_prefix)
        self.every_n_validations = check_integer("every_n_validations", every_n_validations, 1)
        self._due = False  # whether the validation that runs is to be looked at
        self._values: dict[str, float] = {}  # to be logged at its end
        self._log_layers = False
        self._failure: Exception | None = None  # of this validation

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if there are no validations."""
        if not trainer.enable_validation:
            text = (
                f"{type(self).__name__} works at validations, and this Trainer has none: no validation loader, no "
                "`validation_step`, or `limit_val_batches = 0`. It will find nothing."
            )
            self._warn_once("no validation", text + self._dead_monitors(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the last values, and prepare."""
        self._release()
        self._due, self._failure = False, None
        if trainer.sanity_checking:
            return
        past = self._past(trainer)
        self._values = dict(past[-1]["metrics"] if past else self._neutral)
        self._due = len(past) % self.every_n_validations == 0
        self._prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look, and log."""
        if trainer.sanity_checking:
            return
        found = None
        if self._due:
            self._finish(trainer, pl_module)
        with self._guard(self._task, self._consequence(trainer, self._advice)):
            gather_results(self._raise_failure)
            if self._due:
                found = self._find(trainer)
        if trainer.state.fn == "fit":
            self._remember(trainer, found)
        self._log_values(trainer, pl_module)
        self._release()

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures of the last validation, if that has not happened."""
        self._draw_last(trainer)

    @guarded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind; if it is the user who ends the fit, the last figures are made."""
        self._release()
        if isinstance(exception, KeyboardInterrupt):
            self._draw_last(trainer)  # waits for no other process

    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        """Choose the keys to be logged, and begin to look if this validation is due."""

    def _finish(self, trainer: Any, pl_module: Any) -> None:
        """Run what hooks of batches run, in a process without a validation batch."""

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _find(self, trainer: Any) -> Any:
        """Return what was found, and set `_values`; a collective call."""
        raise NotImplementedError

    def _remember(self, trainer: Any, found: Any) -> None:
        """Add this validation to the history."""

    def _log_values(self, trainer: Any, pl_module: Any) -> None:
        """Log the values, those of layers in a group of their own."""
        layers = {key.removeprefix("layer/"): value for key, value in self._values.items() if key.startswith("layer/")}
        others = {key: value for key, value in self._values.items() if not key.startswith("layer/")}
        self._log(trainer, pl_module, others, prog_bar=self._prog_bar)
        if self._log_layers:
            self._log(trainer, pl_module, layers, suffix="_layers")

    def _draw_last(self, trainer: Any) -> None:
        """Log figures of the last validation that have not been logged."""

    def _release(self) -> None:
        """Remove hooks and drop what a validation has taken."""

    def _past(self, trainer: Any) -> list[Any]:
        """The validations of this fit; none outside of a fit."""
        return self.history if trainer.state.fn == "fit" else []

    def _choose_keys(self, layers: Iterable[str], others: Iterable[str] = ()) -> None:
        """Give each of these layers a value `layer/NAME`, and keep those of `others` that exist.

        A ModelCheckpoint or EarlyStopping raises if its key is missing at one validation.
        """
        layers = list(layers)
        self._log_layers = self.layers is not None or len(layers) <= _MOST_LAYERS
        keys = self._neutral | {f"layer/{name}": 0.0 for name in layers}
        allowed = keys.keys() | {f"layer/{name}" for name in others}
        self._values = {key: value for key, value in (keys | self._values).items() if key in allowed}

    def _has_found(self, trainer: Any) -> bool:
        """Whether an earlier validation found something, which can be logged again."""
        return any(entry[key] for entry in self._past(trainer) for key in self._found)

    def _consequence(self, trainer: Any, advice: str = "") -> str:
        """Say what is logged where a validation finds nothing; the sentence begins with a space."""
        if self._has_found(trainer):
            return " The last values are logged again."
        return f" Nothing is watched: the logged values are placeholders.{advice}{self._dead_monitors(trainer)}"

    def _dead_monitors(self, trainer: Any) -> str:
        """Name the keys that callbacks monitor in vain; the sentence begins with a space, and may be empty."""
        keys = {key for key in (getattr(one, "monitor", None) for one in trainer.callbacks) if isinstance(key, str)}
        ours = f"{self.log_key_prefix}/", f"{self.log_key_prefix}_layers/"
        dead = ", ".join(f"'{key}'" for key in sorted(keys) if key.startswith(ours))
        return f" Callbacks that monitor {dead} will only see a constant." if dead else ""

    def _warn_of(self, trainer: Any, notes: Mapping[str, str], found: bool) -> None:
        """Warn of a report's notes, of each once; in one warning if nothing was `found`."""
        if notes and not found:
            consequence = self._consequence(trainer)
            notes = {f"nothing{consequence}": " ".join(merge_notes(notes).values()) + consequence}
        new = {key: note for key, note in notes.items() if key not in self._warned}
        for key, note in merge_notes(new).items():
            self._warn_once(key, note)
        self._warned.update(new)


def until_validation_end(hook: Hook) -> Hook:
    """Keep an exception of a hook in `_failure` until the validation ends, and skip the hooks until then.

    All processes meet at its end; if one left earlier, the others would wait forever.
    """

    @wraps(hook)
    def run(self: WatchingCallback, *args: Any, **kwargs: Any) -> None:
        if self._failure is None:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                # The frames of a traceback would keep the tensors of what failed.
                self._failure = error if self.on_error == "raise" else error.with_traceback(None)
                self._release()

    return cast(Hook, run)
