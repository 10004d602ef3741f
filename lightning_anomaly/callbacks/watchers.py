"""Where the callbacks that act find the one that watches."""

from __future__ import annotations

from typing import Any

from lightning_anomaly.callbacks.anomaly_filter import AnomalyFilterCallback

__all__ = ["find_watcher"]


def find_watcher(trainer: Any, prefix: str | None) -> AnomalyFilterCallback | None:
    """The AnomalyFilterCallback of a Trainer, wherever it stands in the list.

    Args:
        trainer: The Trainer.
        prefix: Its `log_key_prefix`; None takes the first one.

    Returns:
        The callback; None if the Trainer has none at all.

    Raises:
        ValueError: If there are some, but none with this prefix.
    """
    watchers = [callback for callback in trainer.callbacks if isinstance(callback, AnomalyFilterCallback)]
    named = [watcher for watcher in watchers if prefix in (None, watcher.log_key_prefix)]
    if watchers and not named:
        raise ValueError(
            "No AnomalyFilterCallback of this Trainer has the `log_key_prefix` that was asked for. "
            f"Found {[watcher.log_key_prefix for watcher in watchers]}, not {prefix!r}."
        )
    return named[0] if named else None
