"""A written page that a notebook shows in place; elsewhere it is its path."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["BrowserFile"]

_HEIGHT = 760  # pixels


@dataclass(frozen=True, repr=False)
class BrowserFile:
    """The page of a report as a file.

    Attributes:
        path: Where it is.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # The page itself and not its address: a notebook's server does not serve the file, and this can be sent along.
        page = escape(self.path.read_text(encoding="utf-8"))
        style = f"box-sizing:border-box;width:100%;height:{_HEIGHT}px;border:1px solid #8884;border-radius:8px"
        return f'<iframe title="Browser of a report" style="{style}" srcdoc="{page}"></iframe>'
