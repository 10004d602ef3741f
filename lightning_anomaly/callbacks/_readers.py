"""Who in a Trainer reads what a callback logs, to be told when it stands for nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_dead_monitors"]


def describe_dead_monitors(trainer: Any, prefix: str, part: str = "", but: str | None = None) -> str:
    """Name the Trainer's callbacks that monitor a key under a prefix where nothing is watched.

    Args:
        trainer: The Trainer. Its callbacks may be of either of Lightning's package trees, or somebody else's.
        prefix: What the keys begin with.
        part: What they go on with.
        but: What others go on with, which stand for something.

    Returns:
        A sentence with a space before it; empty if none of the keys is monitored.
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
