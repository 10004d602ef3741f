"""Lists of images in which a reader ticks what should go: a page with a tab for each list, and a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.pages.html_page import assemble_page, finite_or_none

_CODE = "dom unpack wording csv colors canvas components shell gallery_cards gallery gallery_main"
# Keeps the folders of classes, and overwrites nothing: what has a name that exists gets a number.
MOVE = """\
import csv, os, shutil

for row in csv.DictReader(open("verdicts.csv", encoding="utf-8")):
    new = {"ticked": "set_aside/" + row["name"], "move": row["move_to"]}.get(row["verdict"])
    if new and os.path.isfile(row["path"]):
        (name, ending), number = os.path.splitext(new), 1
        while os.path.lexists(new):
            number += 1
            new = f"{name}-{number}{ending}"
        os.makedirs(os.path.dirname(new), exist_ok=True)
        shutil.move(row["path"], new)
        print(row["path"], "->", new)
"""
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")
RIGHT = "right"  # the verdict on an image that should stay as it is
VERDICTS = "", "ticked", "move", RIGHT
COLUMNS = ("path", "name", "class", "list", "verdict", "position", "score", "looks_like", "move_to", "reason")


@dataclass
class Row:
    """An image in a list; what is unknown or does not apply keeps its default."""

    name: str  # what a reader calls it: its file in the data set, or `image 7`
    position: int | None = None  # in the data set
    path: str = ""  # of its file, absolute
    label: str = ""  # its class
    looks_like: str = ""  # the class that it looks like instead
    score: float | None = None  # what the list is ordered by
    reason: str = ""  # why it is in the list, in words
    note: str = ""  # a short remark, such as a p-value
    group: int | None = None  # rows with the same number, which are copies, follow each other
    spare: bool = False  # a copy that can go, as another stays
    verdict: str = ""  # "ticked" if it should go, "move" or "right"
    move_to: str = ""  # where its file would be if it was of the class that it looks like
    nearest: Sequence[tuple[str, Sequence[Row]]] = ()  # names of classes, and images of theirs that are most like it
    bars: Sequence[tuple[str, float, float, str]] = ()  # name, value, usual value and reason of each of its scores
    picture: str | None = None  # a small copy, see `data_uri`
    sample: int | None = None  # its index in the probe, if the page has a report with its image and scores

    @property
    def key(self) -> str:
        """What tells it from the images of all lists."""
        return self.path or self.name if self.sample is None else f"sample {self.sample}"


@dataclass
class Tab:
    """A list: its name in addresses and in CSV files, its title and a sentence about it on the page, and its rows."""

    name: str
    title: str
    about: str
    rows: Sequence[Row]
    copies: bool = False  # whether copies are shown side by side, else as one

    @property
    def count(self) -> int:
        """Number of copies that can go, or else of different images."""
        spare = sum(row.spare for row in self.rows)
        return spare or len({place if row.group is None else -1 - row.group for place, row in enumerate(self.rows)})


def gallery_page(
    title: str, lead: Sequence[str], tabs: Sequence[Tab], folder: str | Path, details: Sequence[str] = ()
) -> str:
    """Return the text of a page that will lie in `folder`: the `lead` stands above the lists, `details` are folded."""
    index = {"title": title, "lead": lead, "details": details, **gallery_index(tabs, folder)}
    return assemble_page(_CODE, index)


def gallery_index(tabs: Sequence[Tab], folder: str | Path, move: str = MOVE) -> dict[str, Any]:
    """Return the lists of a page, which will lie in `folder`; the code `move` is for the ticked images."""
    tabs, pictures = [tab for tab in tabs if tab.rows], dict[str, int]()

    def entry(row: Row) -> dict[str, Any]:
        return {
            **vars(row),
            "key": row.key,
            "score": row.score and finite_or_none(row.score),
            "bars": [(name, finite_or_none(value), usual, reason) for name, value, usual, reason in row.bars],
            "link": _file_link(row.path, Path(folder)),
            "picture": row.picture and pictures.setdefault(row.picture, len(pictures)),
            "nearest": [(name, [*map(entry, rows)]) for name, rows in row.nearest],
        }

    listed = [{**vars(tab), "count": tab.count, "rows": [*map(entry, tab.rows)]} for tab in tabs]
    columns, table = _csv_table(tabs)
    lists = json.dumps([(key, cells["list"]) for key, cells in table.items()])
    return {
        "tabs": listed,
        "pictures": [*pictures],
        "columns": columns,
        "move": move,
        "table": [(key, [*cells.values()]) for key, cells in table.items()],
        "key": hashlib.sha256(lists.encode()).hexdigest()[:16],  # under which a browser stores ticks
    }


def _file_link(path: str, folder: Path) -> str | None:
    """Return the address of a file relative to a page's folder; None without a file, or if it is on another drive."""
    there, here = Path(path), folder.resolve()
    if not os.path.isfile(path) or there.anchor != here.anchor:
        return None
    return quote(os.fsencode(os.path.relpath(there, here).replace(os.sep, "/")))


def write_csv(path: str | Path, tabs: Sequence[Tab]) -> None:
    """Write the images of all lists as the page saves them: once each, with the names of its lists."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # File names may not be UTF-8.
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        columns, table = _csv_table(tabs)
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table.values())


def read_reviewed(path: str | Path | None) -> set[str]:
    """Return the names of the images with the verdict "right" in a CSV file that a page saved; none without a file."""
    return set() if path is None else {row["name"] for row in read_verdicts(path) if row["verdict"] == RIGHT}


def read_verdicts(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file that a page saved, also if a spreadsheet has saved it since.

    A spreadsheet may add a byte order mark, separate fields by `;` or tabs, and end lines by a carriage return. An
    unknown verdict is named in a warning, and its row has none.

    Raises:
        ValueError: If the file is no such table; the error names the line, if there is one.
    """
    wanted = f"Parameter `reviewed` should be a CSV file that a page of a search saved. Found `{path}`"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{wanted}, which is no text in UTF-8 ({error.reason} at byte {error.start}).") from error
    head = text.splitlines()[0] if text else ""
    delimiter = max(",;\t", key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    found, unknown = list[dict[str, str]](), list[str]()
    try:
        columns = rows.fieldnames or ()
        if not {"name", "verdict"} <= {*columns}:
            raise ValueError(f"{wanted} with {'the columns ' + ', '.join(columns) if columns else 'no columns'}.")
        for row in rows:
            verdict = row["verdict"].strip().lower()
            if verdict not in VERDICTS:
                unknown.append(f"'{row['verdict']}' in line {rows.line_num}")
            found.append({**row, "verdict": verdict if verdict in VERDICTS else ""})
    except csv.Error as error:
        raise ValueError(f"{wanted}, of which line {rows.line_num + 1} is no row of a CSV file ({error}).") from error
    if unknown:
        known = ", ".join(filter(None, VERDICTS))
        warnings.warn(f"`{path}` has verdicts other than {known}: {listed(unknown)}.", stacklevel=3)
    return found


def name_in_csv(name: str) -> str:
    """Return a name as CSV files have it."""
    return str(_csv_cell(name.encode("utf-8", "backslashreplace").decode()))


def _csv_table(tabs: Sequence[Tab]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the columns of the CSV file, with each kind of score, and its cells by the keys of images."""
    scores = {f"{name}_score": None for tab in tabs for row in tab.rows for name, *_ in row.bars}
    table, columns = dict[str, dict[str, Any]](), [*COLUMNS, *scores]
    for tab in tabs:
        for row in tab.rows:
            key = row.key
            if key in table:
                table[key]["list"] = "; ".join(filter(None, [table[key]["list"], tab.name]))
                table[key]["verdict"] = table[key]["verdict"] or row.verdict
                if row.reason not in table[key]["reason"]:
                    table[key]["reason"] = "; ".join(filter(None, [table[key]["reason"], row.reason]))
            else:
                cells = {**vars(row), "class": row.label, "list": tab.name}
                cells |= {f"{name}_score": score for name, score, *_ in row.bars}
                table[key] = {column: cells.get(column) for column in columns}
    return columns, {key: {name: _csv_cell(value) for name, value in row.items()} for key, row in table.items()}


def _csv_cell(value: Any) -> Any:
    """Begin texts with `./` that a spreadsheet would take for formulas, also after blanks; NaN and infinity go."""
    if isinstance(value, str):
        return f"./{value}" if _FORMULA.match(value) else value
    return "" if isinstance(value, float) and not math.isfinite(value) else value
