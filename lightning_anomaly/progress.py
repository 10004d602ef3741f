"""Progress bars for work that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

_PATIENCE = 2.0  # how long nobody wonders (seconds)
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], total: int, what: str, show: bool | None) -> Iterable[_Item]:
    """Go through items, while a bar on stderr says what is being done and how many of the total were taken.

    If `show` is None there is a bar after two seconds, where stderr is a terminal or a notebook's.
    """
    watched = type(sys.stderr).__module__.startswith("ipykernel.") or getattr(sys.stderr, "isatty", bool)()
    if not (watched if show is None else show):
        return items
    from tqdm import tqdm

    bar: Iterable[_Item] = tqdm(items, total=total, desc=what, leave=False, delay=0.0 if show else _PATIENCE)
    return bar
