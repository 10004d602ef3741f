"""The base class of the callbacks that analyze at validations and log what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, cast

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly._internal.checks import check_integer
from lightning_anomaly._internal.notes import merge_notes
from lightning_anomaly._internal.processes import gather_results, run_together
from lightning_anomaly.callbacks._base import Hook, LoggingCallback, guarded

_MOST_LAYERS = 12  # logged one by one if `layers` does not name them
_SHARE, _SECONDS = 0.1, 1.0  # of the time since the last analysis, and at least: less is not worth a line


class WatchingCallback(LoggingCallback):
    """Analyze at validations; where an analysis finds nothing, log the last values again.

    A validation calls `_prepare` at its start. At its end it calls `_finish`, `_find` if no process has failed, and
    `_remember` in a fit; then it logs `_values`, which hold only what has been measured.
    """

    _task: str  # completes the warning "Could not ..."
    _advice = ""  # ends that warning if no validation has found anything
    _neutral: dict[str, float]  # for monitored keys, which Lightning needs, until they are measured
    _found_keys: tuple[str, ...]  # history entries that are true if a validation found something
    _prog_bar = ""  # name of the value in the progress bar
    history: list[Any]
    layers: list[str] | None

    def __init__(self, log_key_prefix: str, every_n_validations: int) -> None:
        super().__init__(log_key_prefix)
        self.every_n_validations = check_integer("every_n_validations", every_n_validations, 1)
        self._due = False  # whether the current validation is analyzed
        self._values: dict[str, float] = {}  # to log when it ends
        self._layers: list[str] = []  # of the module
        self._failure: Exception | None = None  # of the current validation
        self._spent = 0.0  # seconds since the last analysis of this fit began
        self._began: list[float] = []  # when each analysis of this fit began (seconds)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the time inside."""
        started = perf_counter()
        try:
            yield
        finally:
            self._spent += perf_counter() - started

    @guarded
    def _say_cost(self, trainer: Any) -> None:
        """Say once if the last analysis took long; the first compiles loops and reads images."""
        now = perf_counter()
        if len(self._began) > 1 and self._has_found(trainer) and "cost" not in self._warned:
            line = cost_line(type(self).__name__, self._spent, now - self._began[-1])
            if line is not None:
                self._warned.add("cost")
                rank_zero_info(line)
        self._spent = 0.0
        self._began.append(now)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn if there are no validations."""
        self._began = []
        if not trainer.enable_validation:
            text = (
                "This Trainer has no validations (no validation loader, no `validation_step`, or `limit_val_batches = "
                "0`), so nothing is measured."
            )
            self._warn_once("no validation", text + self._dead_monitors(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Start from the last values, and prepare the analysis if one is due."""
        self._release()
        self._due, self._failure = False, None
        if trainer.sanity_checking:
            return
        past = self._past(trainer)
        self._values = dict(past[-1]["metrics"]) if past else {}
        self._due = len(past) % self.every_n_validations == 0
        if self._due and trainer.state.fn == "fit":
            self._say_cost(trainer)
        self._prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Analyze if it is due, and log."""
        if trainer.sanity_checking:
            return
        result = None
        with self._timed():
            if self._due:
                self._finish(trainer, pl_module)
            with self._guard(self._task, self._consequence(trainer, self._advice)):
                run_together(self._raise_failure)
                if self._due:
                    result = self._find(trainer)
            if trainer.state.fn == "fit":
                self._remember(trainer, result)
        self._log(pl_module, self._known(trainer), self._prog_bar)
        self._release()

    @guarded
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Free what the fit collected, and log the figures of the last validation."""
        self._free()
        self._draw_last(trainer)

    @guarded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove all hooks and free what the fit collected; if the user interrupts it, log the last figures too."""
        self._release()
        self._free()
        if isinstance(exception, KeyboardInterrupt):
            self._draw_last(trainer)  # waits for no other process

    def _prepare(self, trainer: Any, pl_module: Any) -> None:
        """Choose the keys to log, and prepare the analysis if it is due."""

    def _finish(self, trainer: Any, pl_module: Any) -> None:
        """Do the work of the batch hooks, in case this process had no batch."""

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _find(self, trainer: Any) -> Any:
        """Analyze, set `_values`, and return the result for `_remember`; a collective call."""
        raise NotImplementedError

    def _remember(self, trainer: Any, result: Any) -> None:
        """Add this validation to the history."""

    def _draw_last(self, trainer: Any) -> None:
        """Log the figures of the last validation, unless they are logged already."""

    def _release(self) -> None:
        """Remove hooks, and free what a validation collected."""

    def _free(self) -> None:
        """Free what a fit collected."""

    def _past(self, trainer: Any) -> list[Any]:
        """The validations of this fit; none outside of a fit."""
        return self.history if trainer.state.fn == "fit" else []

    def _choose_keys(self, layers: Iterable[str]) -> None:
        """Drop the last values of layers that the module no longer has."""
        self._layers = list(layers)
        kept = self._neutral.keys() | {f"layer/{name}" for name in layers}
        self._values = {key: value for key, value in self._values.items() if key in kept}

    def _known(self, trainer: Any) -> dict[str, float]:
        """Return what to log, under the same keys in all processes: what all of them know, and the monitored keys.

        ModelCheckpoint, EarlyStopping and ReduceLROnPlateau raise if the key they monitor is missing at one validation.
        """
        known = set.intersection(*gather_results(lambda: set(self._values)))
        monitored = self._monitored(trainer)
        neutral = self._neutral | {f"layer/{name}": 0.0 for name in self._layers}
        values = {key: value for key, value in neutral.items() if self._key(key) in monitored}
        values |= {key: value for key, value in self._values.items() if key in known}
        log_layers = self.layers is not None or len(self._layers) <= _MOST_LAYERS
        return {key: value for key, value in values.items() if log_layers or not key.startswith("layer/")}

    def _has_found(self, trainer: Any) -> bool:
        """Whether an earlier validation found something that can be logged again."""
        return any(entry[key] for entry in self._past(trainer) for key in self._found_keys)

    def _consequence(self, trainer: Any, advice: str = "") -> str:
        """Say what is logged if a validation finds nothing; the text begins with a space."""
        if self._has_found(trainer):
            return " The last values are logged again."
        return f" Nothing is measured.{advice}{self._dead_monitors(trainer)}"

    def _dead_monitors(self, trainer: Any) -> str:
        """Name the monitored keys that will stay constant; empty if there are none."""
        dead = [f"'{key}'" for key in sorted(self._monitored(trainer))]
        return f" Whatever monitors {', '.join(dead)} will only see a constant." if dead else ""

    def _monitored(self, trainer: Any) -> set[str]:
        """Return this callback's keys that another callback or a learning rate scheduler of a fit monitors."""
        readers = (*trainer.callbacks, *trainer.lr_scheduler_configs) if trainer.state.fn == "fit" else ()
        monitors = [getattr(reader, "monitor", None) for reader in readers]
        prefixes = f"{self.log_key_prefix}/", f"{self.log_key_prefix}_layers/"
        return {key for key in monitors if isinstance(key, str) and key.startswith(prefixes)}

    def _warn_of(self, trainer: Any, notes: Mapping[str, str], found: bool) -> None:
        """Warn once of each note of a report; if nothing was `found`, of all notes in one warning."""
        if notes and not found:
            consequence = self._consequence(trainer)
            notes = {f"nothing{consequence}": " ".join(merge_notes(notes).values()) + consequence}
        new = {key: note for key, note in notes.items() if key not in self._warned}
        for key, note in merge_notes(new).items():
            self._warn_once(key, note)
        self._warned.update(new)


def cost_line(name: str, seconds: float, period: float) -> str | None:
    """Return what to say of a callback that took `seconds` of a period (seconds); None if it took at most a tenth.

    Examples:
        >>> cost_line("AnomalyFilterCallback", 6.2, 100) is None
        True
        >>> cost_line("Watcher", 24.4, 61)
        'Watcher took 24 of the 61 seconds since its last analysis (40%): see docs/speed.md.'
    """
    if seconds <= max(_SECONDS, _SHARE * period):
        return None
    time = f"{seconds:.0f} of the {period:.0f} seconds since its last analysis ({100 * seconds / period:.0f}%)"
    return f"{name} took {time}: see docs/speed.md."


def until_validation_end(hook: Hook) -> Hook:
    """Store an exception of a hook in `_failure`, and skip the hooks until the validation ends.

    All processes meet there; if one left earlier, the others would wait forever.
    """

    @wraps(hook)
    def run(self: WatchingCallback, *args: Any, **kwargs: Any) -> None:
        if self._failure is None:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                # The frames of a traceback would keep tensors in memory.
                self._failure = error if self.on_error == "raise" else error.with_traceback(None)
                self._release()

    return cast(Hook, run)
