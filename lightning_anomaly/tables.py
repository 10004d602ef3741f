"""Tables as text for a terminal and as HTML for a notebook; lists in a sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape


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
    """List the first entries, and say how many more there are."""
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(map(str, entries[:most])) + more


def text_table(rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """Lay out rows in columns, the first one as a heading, then the sentences, one a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *sentences])


def html_table(rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """Lay out the same as HTML; whatever is in the cells and sentences is shown and never interpreted."""
    head, *body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    head = head.replace("<td>", "<th>").replace("</td>", "</th>")
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *(f"<tr>{row}</tr>" for row in body), "</tbody>"]
    return "\n".join([*lines, "</table>", *(f"<p>{escape(sentence)}</p>" for sentence in sentences)])
