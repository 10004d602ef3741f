"""Tables as text for a terminal and as HTML for a notebook; lists in a sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape

__all__ = ["Tabular", "html_table", "listed", "text_table"]


class Tabular(ABC):
    """What shows itself as a table: printed, in a console and in a notebook."""

    @abstractmethod
    def _rows(self) -> Sequence[Sequence[str]]:
        """The rows, the first one as a heading."""

    @abstractmethod
    def _sentences(self) -> Sequence[str]:
        """What stands below them."""

    def __str__(self) -> str:
        return text_table(self._rows(), self._sentences())

    def __repr__(self) -> str:
        return str(self)  # the fields of a report are hundreds of kilobytes, which a notebook would store

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self._sentences())


def listed(entries: Sequence[object], most: int = 5) -> str:
    """The first entries, and how many more there are."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(map(str, entries[:most])) + more


def text_table(rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """The rows under each other in columns, the first one as a heading, then the sentences, one a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *sentences])


def html_table(rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """The same as HTML; whatever is in the cells and sentences is shown and never interpreted."""
    head, *body = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(rows)]
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    lines += [f"<tr>{row}</tr>" for row in body]
    lines += ["</tbody>", "</table>"]
    return "\n".join(lines + [f"<p>{escape(sentence)}</p>" for sentence in sentences])


def _tagged(rows: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [("td" if place else "th", row) for place, row in enumerate(rows)]
