"""Progress bars for work that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

_PATIENCE = 2.0  # seconds before a bar appears
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], total: int, description: str, show: bool | None) -> Iterable[_Item]:
    """Iterate with a progress bar on stderr; None shows it after two seconds, in a terminal or a notebook."""
    interactive = type(sys.stderr).__module__.startswith("ipykernel.") or getattr(sys.stderr, "isatty", bool)()
    if not (interactive if show is None else show):
        return items
    from tqdm import tqdm

    bar: Iterable[_Item] = tqdm(items, total=total, desc=description, leave=False, delay=0.0 if show else _PATIENCE)
    return bar
