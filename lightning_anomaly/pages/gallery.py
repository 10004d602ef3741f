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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from lightning_anomaly._internal.tabular import listed
from lightning_anomaly.pages.html_page import assemble_page, finite_or_none, usual_score
from lightning_anomaly.scores.sample_table import COLUMNS, column_tensor, sample_reasons, views_of

if TYPE_CHECKING:
    from pandas import DataFrame

_CODE = "dom unpack wording csv colors canvas components shell gallery_cards gallery gallery_main"
_MOVE = "lightning-anomaly move verdicts.csv"
_FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")
RIGHT = "right"  # the verdict on an image that should stay as it is
VERDICTS = "", "ticked", "move", RIGHT
FIRST_COLUMNS = ("path", "name", "class", "list", "verdict", "position", "score", "looks_like", "move_to", "reason")


class Entry(NamedTuple):
    """A sample in a list; what does not apply keeps its default."""

    position: int  # in the table of samples
    reason: str = ""  # why it is in the list, in words
    score: float = math.nan  # what the list is ordered by
    note: str = ""  # a short remark, such as a p-value
    group: int | None = None  # entries with the same number, which are copies, follow each other
    can_go: bool = False  # a copy that can go, as another stays
    sure: bool = False  # what stands first, under a heading of its own


@dataclass(frozen=True)
class SampleList:
    """An order of some rows of a table of samples, with a reason for each."""

    name: str  # in addresses and in CSV files
    title: str
    about: str  # a sentence on the page
    samples: DataFrame
    entries: Sequence[Entry]
    copies: bool = False  # whether copies are shown side by side, else as one
    compares: bool = False  # whether images are shown beside the nearest ones of both classes
    about_sure: str = ""  # a sentence on what stands first
    in_report: bool = False  # whether the page has a report with images and scores of these samples
    pictures: Mapping[int, str] = field(default_factory=dict)  # small copies by position, see `data_uri`

    @property
    def count(self) -> int:
        """Number of copies that can go, or else of images."""
        return sum(entry.can_go for entry in self.entries) or len(self.entries)

    @cached_property
    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the rows of the entries, with what tells each from the samples of all lists."""
        rows = self.samples.loc[[entry.position for entry in self.entries]].to_dict("records")
        return [
            (f"sample {entry.position}" if self.in_report else row["path"] or row["name"], row)
            for entry, row in zip(self.entries, rows, strict=True)
        ]


def gallery_page(
    title: str,
    lead: Sequence[str],
    lists: Sequence[SampleList],
    folder: str | Path,
    details: Sequence[str] = (),
) -> str:
    """Return the text of a page that will lie in `folder`: the `lead` stands above the lists, `details` are folded."""
    index = {"title": title, "lead": lead, "details": details, **gallery_index(lists, folder)}
    return assemble_page(_CODE, index)


def gallery_index(lists: Sequence[SampleList], folder: str | Path, move: str = _MOVE) -> dict[str, Any]:
    """Return the lists of a page, which will lie in `folder`; `move` is a line or code that acts on the verdicts.

    A sample is there once, with its cells of the CSV file, and the entries of lists have its number.
    """
    lists, uris = [part for part in lists if part.entries], dict[str, int]()
    columns, table = _csv_table(lists)
    numbers, more = {key: number for number, key in enumerate(table)}, dict[str, dict[str, Any]]()

    def drawn(part: SampleList, position: int) -> dict[str, Any]:
        uri, path = part.pictures.get(position), part.samples["path"][position]
        picture = None if uri is None else uris.setdefault(uri, len(uris))
        return {"name": part.samples["name"][position], "link": _file_link(path, Path(folder)), "picture": picture}

    usual_of = {id(part.samples): part.samples for part in lists}
    usual_scores = {
        key: {view: usual_score(column_tensor(samples, f"{view}_score")) for view in views_of(samples)}
        for key, samples in usual_of.items()
    }
    for part in lists:
        usual = usual_scores[id(part.samples)]
        for entry, (key, row) in zip(part.entries, part.rows, strict=True):
            if key in more:
                continue
            reasons, known = sample_reasons(row), [view for view in usual if not math.isnan(row[f"{view}_score"])]
            sides = zip((row["class"], row.get("looks_like", "")), row.get("nearest") or (), strict=False)
            more[key] = drawn(part, entry.position) | {
                "key": key,
                "sample": entry.position if part.in_report else None,
                "bars": [(v, finite_or_none(row[f"{v}_score"]), usual[v], reasons.get(v, "")) for v in known],
                "nearest": [(name, [drawn(part, place) for place in places]) for name, places in sides if places],
            }
    tabs = [
        {
            **{
                name: getattr(part, name)
                for name in ("name", "title", "about", "copies", "compares", "about_sure", "count")
            },
            "rows": [
                (numbers[key], finite_or_none(entry.score), *entry[1:2], *entry[3:])
                for entry, (key, _) in zip(part.entries, part.rows, strict=True)
            ],
        }
        for part in lists
    ]
    names = json.dumps([(key, cells["list"]) for key, cells in table.items()])
    return {
        "tabs": tabs,
        "pictures": [*uris],
        "columns": columns,
        "move": move,
        "table": [cells | more[key] for key, cells in table.items()],
        "key": hashlib.sha256(names.encode()).hexdigest()[:16],  # under which a browser stores ticks
    }


def _file_link(path: str, folder: Path) -> str | None:
    """Return the address of a file relative to a page's folder; None without a file, or if it is on another drive."""
    there, here = Path(path), folder.resolve()
    if not os.path.isfile(path) or there.anchor != here.anchor:
        return None
    return quote(os.fsencode(os.path.relpath(there, here).replace(os.sep, "/")))


def write_csv(path: str | Path, lists: Sequence[SampleList]) -> None:
    """Write the images of all lists as the page saves them: once each, with the names of its lists."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # File names may not be UTF-8.
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        columns, table = _csv_table(lists)
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_safe(value) for value in row.values()] for row in table.values())


def mark_right(samples: DataFrame, names: Collection[str]) -> DataFrame:
    """Give the verdict "right" to the samples with these names, as `read_reviewed` returns them."""
    right = [RIGHT if name_in_csv(name) in names else "" for name in samples["name"]]
    return samples.assign(verdict=right) if names else samples


def read_reviewed(path: str | Path | None) -> set[str]:
    """Return the names of the images with the verdict "right" in a CSV file that a page saved; none without a file."""
    return set() if path is None else {row["name"] for row in read_verdicts(path) if row["verdict"] == RIGHT}


def read_verdicts(path: str | Path, argument: str = "reviewed") -> list[dict[str, str]]:
    """Read the rows of a CSV file that a page saved, also if a spreadsheet has saved it since.

    A spreadsheet may add a byte order mark, separate fields by `;` or tabs, and end lines by a carriage return. An
    unknown verdict is named in a warning, and its row has none.

    Raises:
        ValueError: If the file is no such table; the error names the line, if there is one.
    """
    wanted = f"Parameter `{argument}` should be a CSV file that a page of a search saved. Found `{path}`"
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
    return str(_safe(name.encode("utf-8", "backslashreplace").decode()))


def _csv_table(lists: Sequence[SampleList]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the columns of the CSV file, and the cells of each sample by what tells it from the others."""
    known = [name for name in COLUMNS if any(name in part.samples for part in lists) and name != "nearest"]
    columns = [*FIRST_COLUMNS, *(name for name in known if name not in FIRST_COLUMNS)]
    table = dict[str, dict[str, Any]]()
    for part in lists:
        for entry, (key, row) in zip(part.entries, part.rows, strict=True):
            if key not in table:
                position = None if entry.position < 0 else entry.position
                of_list = {"position": position, "list": part.name, "score": entry.score, "reason": entry.reason}
                cells = row | of_list
                table[key] = {column: _cell(cells.get(column)) for column in columns}
                continue
            cells = table[key]
            cells["list"] = "; ".join(filter(None, [cells["list"], part.name]))
            if entry.reason not in cells["reason"]:
                cells["reason"] = "; ".join(filter(None, [cells["reason"], entry.reason]))
    return columns, table


def _cell(value: Any) -> Any:
    """Return a value of the table as files and pages have it: without NaN and infinity, truth in words."""
    if isinstance(value, float):
        return finite_or_none(value)
    return str(value) if isinstance(value, bool) else value


def _safe(value: Any) -> Any:
    """Begin texts with `./` that a spreadsheet would take for formulas, also after blanks."""
    return f"./{value}" if isinstance(value, str) and _FORMULA.match(value) else value
