"""Progress bars for work that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

_PATIENCE = 2.0  # how long nobody wonders (seconds)
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], total: int, what: str, show: bool | None) -> Iterable[_Item]:
    """Go through items, while a bar on stderr shows how many were taken.

    Args:
        items: What to go through.
        total: How many there are.
        what: What is being done.
        show: Whether there is a bar; None shows it after two seconds, where stderr is a terminal or a notebook's.

    Returns:
        The items.
    """
    if show is False or (show is None and not _is_watched(sys.stderr)):
        return items
    from tqdm import tqdm

    bar: Iterable[_Item] = tqdm(items, total=total, desc=what, leave=False, delay=0.0 if show else _PATIENCE)
    return bar


def _is_watched(stream: object) -> bool:
    notebook = type(stream).__module__.startswith("ipykernel.")
    return notebook or bool(getattr(stream, "isatty", bool)())
