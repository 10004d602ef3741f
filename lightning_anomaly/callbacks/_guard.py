"""Turn what fails in a callback's hooks into warnings, so that a monitor never ends a run; say if it takes long."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, Literal, TypeVar, cast, get_args

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_anomaly._internal.checks import check_one_of
from lightning_anomaly._internal.notes import merge_notes
from lightning_anomaly._internal.processes import rank_and_world, run_together

OnError = Literal["warn", "raise"]
Hook = TypeVar("Hook", bound=Callable[..., None])
_SHARE, _SECONDS = 0.1, 1.0  # of the time since the last analysis, and at least: less is not worth a line


class Guard:
    """Warn once of each problem of a callback, by its name, in process 0; or let exceptions pass, by its `on_error`."""

    def __init__(self, callback: Any, on_error: OnError) -> None:
        callback.on_error = check_one_of("on_error", on_error, get_args(OnError))
        callback.on_after_setup = self.refuse_fabric  # the one hook that Fabric calls by itself
        self.name = type(callback).__name__
        self._callback = callback
        self._warned: set[str] = set()
        self._began: list[float] = []  # when each analysis of a fit began (seconds)
        self.failure: Exception | None = None  # of the current validation

    @contextmanager
    def __call__(self, task: str, consequence: str = "") -> Iterator[None]:
        """Turn an exception into one warning."""
        try:
            yield
        except Exception as error:
            if self._callback.on_error == "raise":
                raise
            problem = f"{type(error).__name__}: {error}"
            self.warn(task + consequence, f"Could not {task} ({problem}).{consequence}")

    def refuse_fabric(self, fabric: Any, **given: Any) -> None:
        """Raise TypeError: Fabric calls no other hook, and whoever calls them has no Trainer."""
        found = type(fabric).__name__
        raise TypeError(
            f"{self.name} should be among the callbacks of a Trainer. Found {found}: call `analyze` in your own loop."
        )

    def warn(self, key: str, message: str) -> None:
        """Warn once for each key."""
        if self.is_first_time(key) and rank_and_world()[0] == 0:
            warnings.warn(f"{self.name}: {message}", stacklevel=2)

    def warn_of(self, notes: Mapping[str, str], consequence: str = "") -> None:
        """Warn once of each note of a report, or with a `consequence` of all in one warning."""
        if notes and consequence:
            notes = {f"nothing{consequence}": " ".join(merge_notes(notes).values()) + consequence}
        new = {key: note for key, note in notes.items() if key not in self._warned}
        for key, note in merge_notes(new).items():
            self.warn(key, note)
        self._warned.update(new)

    def is_first_time(self, key: str) -> bool:
        """Return whether nothing was said under this key before."""
        new = key not in self._warned
        self._warned.add(key)
        return new

    def begin_analysis(self, seconds: float) -> None:
        """Say once if the last analysis took `seconds`, more than a tenth of the time since it began."""
        self._began.append(perf_counter())
        # The first does not count, as it compiles loops and reads images.
        period = self._began[-1] - self._began[-2] if len(self._began) > 2 else math.inf
        if seconds > max(_SECONDS, _SHARE * period) and self.is_first_time("cost"):
            share = f"{seconds:.0f} of the {period:.0f} seconds since its last analysis ({100 * seconds / period:.0f}%)"
            rank_zero_info(f"{self.name} took {share}: raise `every_n_validations` to cut it.")

    def forget_warnings(self) -> None:
        """Begin anew: warn of everything again."""
        self._warned.clear()
        self._began.clear()

    def keep_failure(self, error: Exception) -> None:
        """Keep an exception until `raise_kept_failure`; if it is not raised, without its frames, which keep tensors."""
        self.failure = error if self._callback.on_error == "raise" else error.with_traceback(None)

    def raise_kept_failure(self) -> None:
        """Raise in all processes what `keep_failure` kept in one of them; a collective call."""
        failure, self.failure = self.failure, None

        def raise_failure() -> None:
            if failure is not None:
                raise failure

        run_together(raise_failure)


def guarded(hook: Hook) -> Hook:
    """Run a hook of a callback behind its guard."""

    @wraps(hook)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        with self._guard(f"run `{hook.__name__}`"):
            hook(self, *args, **kwargs)

    return cast("Hook", run)


def guarded_until_validation_ends(hook: Hook) -> Hook:
    """Postpone an exception of a hook, and skip such hooks, until the validation ends, where all processes meet."""

    @wraps(hook)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        if self._guard.failure is None:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                self._guard.keep_failure(error)
                self._remove_hooks()

    return cast("Hook", run)
