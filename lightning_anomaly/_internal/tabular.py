"""Tables as text for a terminal and as HTML for a notebook; lists in a sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape


class Tabular(ABC):
    """An object that is shown as a table in a console and in a notebook."""

    @abstractmethod
    def _table_rows(self) -> Sequence[Sequence[str]]:
        """Return the heading and the rows."""

    @abstractmethod
    def _sentences(self) -> Sequence[str]:
        """Return the sentences below the table."""

    def _introduction(self) -> Sequence[str]:
        """Return the lines above the table."""
        return []

    def __str__(self) -> str:
        rows = self._table_rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        lines += self._sentences()
        if introduction := self._introduction():
            lines = [*introduction, "", *lines]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)  # a notebook would store the fields, hundreds of kilobytes

    def _repr_html_(self) -> str:
        head, *body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._table_rows()]
        head = head.replace("<td>", "<th>").replace("</td>", "</th>")
        table = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *(f"<tr>{row}</tr>" for row in body), "</tbody>"]
        before, after = (
            [f"<p>{escape(sentence)}</p>" for sentence in part()] for part in (self._introduction, self._sentences)
        )
        return "\n".join([*before, "<table>", *table, "</table>", *after])


def listed(entries: Sequence[object], separator: str = ", ") -> str:
    """List the first five entries, and the number of the others."""
    more = f" and {len(entries) - 5:,} more" if len(entries) > 5 else ""
    return separator.join(map(str, entries[:5])) + more
