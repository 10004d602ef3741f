"""Move the files of a folder by the verdicts of a page, and back: each move is written down before it is made."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_anomaly.pages.gallery import read_verdicts

_ESCAPE = re.compile(r"\\udc([89a-f][0-9a-f])")  # of a byte in a file name that is no UTF-8, in CSV files
_SECONDS = 1  # difference of times that is rounding, as of a spreadsheet


class Move(NamedTuple):
    """A file, and where it goes; both paths are absolute."""

    old: str
    new: str
    to: str  # in words


class Plan(NamedTuple):
    """What the verdicts of a file ask for."""

    folder: str  # that was searched
    aside: str  # the folder set aside
    moves: list[Move]
    done: int  # moves that an earlier run has made
    refused: list[str]  # what cannot be moved, and why

    def __str__(self) -> str:
        """Say what will be moved where."""
        kinds = Counter(move.to for move in self.moves)
        aside = kinds.pop("", 0)
        classes = [
            f"{count:,} to {name}" for name, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        ]
        parts = [f"{aside:,} set aside in {self.aside}"] * (aside > 0) + classes
        before = f" ({self.done:,} moved before)" if self.done else ""
        return f"In {self.folder or 'no folder'}: {', '.join(parts) or 'nothing to move'}{before}."


def log_of(verdicts: str | Path) -> Path:
    """Return the file beside a CSV file of verdicts in which its moves are written down."""
    return Path(f"{verdicts}.moves")


def plan_moves(verdicts: str | Path, folder: str | Path | None = None, aside: str | Path | None = None) -> Plan:
    """Plan the moves of a CSV file that a page saved: ticked files go aside, others into the folder of another class.

    A file is refused if it is no longer there, has changed since the search, is a link, or lies outside the folder that
    was searched, and so is a target that exists or lies outside.

    Args:
        verdicts: The CSV file.
        folder: The folder that was searched; None takes that in which most of the files are by their names.
        aside: The folder for what is set aside, None for `FOLDER_set_aside` beside the searched one.

    Raises:
        ValueError: If the file is no such table, or names no files.
    """
    rows = [row for row in read_verdicts(verdicts, "verdicts") if row["verdict"] in ("ticked", "move")]
    for row in rows:
        row["name"], row["path"], row["move_to"] = (_decoded(row.get(name, "")) for name in ("name", "path", "move_to"))
    roots = Counter(
        row["path"].removesuffix(os.sep + row["name"]) for row in rows if row["path"].endswith(os.sep + row["name"])
    )
    if folder is None and rows and not roots:
        raise ValueError(f"Parameter `verdicts` should name files of one folder. Found `{verdicts}` without any.")
    root = os.path.abspath(folder) if folder is not None else roots.most_common(1)[0][0] if roots else ""
    set_aside = os.path.abspath(aside or f"{root}_set_aside")
    made = {(entry["old"], entry["new"]) for entry in _logged(log_of(verdicts))}
    plan, taken = Plan(root, set_aside, [], sum(_is_done(*move) for move in made), []), set[str]()
    for row in rows:
        is_aside = row["verdict"] == "ticked"
        new = os.path.join(set_aside, row["name"]) if is_aside else row["move_to"]
        move = Move(row["path"], new, "" if is_aside else os.path.relpath(os.path.dirname(new), root) if new else "")
        if (move.old, move.new) in made and _is_done(move.old, move.new):
            continue
        if problem := _problem(move, row, root, set_aside if is_aside else root, taken):
            plan.refused.append(f"{row['path'] or row['name']}: {problem}")
        else:
            taken.add(move.new)
            plan.moves.append(move)
    return plan


def make_moves(plan: Plan, verdicts: str | Path) -> None:
    """Make the moves of a plan, each after it is written down beside the verdicts; what fails is added to `refused`."""
    if log_of(verdicts).exists() and not log_of(verdicts).read_text(encoding="ascii").endswith("\n"):
        _write_log(verdicts, _logged(log_of(verdicts)))  # without its incomplete line
    with log_of(verdicts).open("a", encoding="ascii") as log:
        for move in plan.moves:
            parents = [Path(move.new).parent, *Path(move.new).parent.parents]
            missing = [str(parent) for parent in parents if not parent.exists()]
            log.write(json.dumps({"old": move.old, "new": move.new, "made": missing}) + "\n")
            log.flush()
            os.fsync(log.fileno())
            try:
                os.makedirs(os.path.dirname(move.new), exist_ok=True)
                _rename(move.old, move.new)
            except OSError as error:
                plan.refused.append(f"{move.old}: {error.strerror}")


def undo_moves(verdicts: str | Path, dry_run: bool = False) -> tuple[int, list[str]]:
    """Move files back, the last one first; return how many, and what cannot be moved back, and why.

    Folders that the moves made are removed if they are empty. What was moved back is no longer written down.

    Raises:
        ValueError: If no moves are written down.
    """
    entries, count, left, refused = _logged(log_of(verdicts)), 0, list[dict[str, Any]](), list[str]()
    if not entries:
        raise ValueError(f"Parameter `verdicts` should have moves to undo, in `{log_of(verdicts)}`. Found none.")
    for entry in reversed(entries):
        old, new = entry["old"], entry["new"]
        if _is_done(old, new):
            count += 1
            if not dry_run:
                os.makedirs(os.path.dirname(old), exist_ok=True)
                _rename(new, old)
        elif os.path.lexists(new) or not os.path.lexists(old):  # else it was never made, or is undone already
            refused.append(f"{new}: {'there is a file at ' + old if os.path.lexists(old) else 'no longer there'}")
            left.append(entry)
        for folder in () if dry_run else entry["made"]:
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
    if not dry_run:
        _write_log(verdicts, left[::-1])
    return count, refused


def _logged(log: Path) -> list[dict[str, Any]]:
    """Read the moves that are written down; the last line may be incomplete, of a move that was not made."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="ascii").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _write_log(verdicts: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write down these moves alone; without any, the file goes."""
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    log_of(verdicts).write_text(text, encoding="ascii")
    if not text:
        log_of(verdicts).unlink()


def _is_done(old: str, new: str) -> bool:
    return os.path.lexists(new) and not os.path.lexists(old)


def _problem(move: Move, row: Mapping[str, str], root: str, target: str, taken: Iterable[str]) -> str:
    """Return why a file cannot be moved into a folder; empty if it can."""
    if not _is_inside(move.old, root):
        return f"not in the searched folder {root}"
    if not move.new or not _is_inside(move.new, target):
        return f"would go to {move.new or 'no folder'}, which is not in {target}"
    if not os.path.lexists(move.old):
        return "no longer there"
    if os.path.islink(move.old) or not os.path.isfile(move.old):
        return "a link" if os.path.islink(move.old) else "no file"
    found = os.stat(move.old)
    for name, value, rounding in (("bytes", found.st_size, 0), ("modified", found.st_mtime, _SECONDS)):
        try:
            known = float((row.get(name) or str(value)).replace(",", "."))  # a spreadsheet may write a decimal comma
        except ValueError:
            return f"its `{name}` in the file is no number: {row[name]}"
        if abs(known - value) > rounding:
            return "changed since the search"
    return f"{move.new} exists" if move.new in taken or os.path.lexists(move.new) else ""


def _is_inside(path: str, folder: str) -> bool:
    """Return whether a path is in a folder, also once links and `..` are resolved."""
    if not os.path.isabs(path) or ".." in Path(path).parts:
        return False
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return Path(os.path.realpath(folder)) in Path(real).parents


def _rename(old: str, new: str) -> None:
    """Move a file with its times, to another disk too; nothing is overwritten."""
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, f"{new} exists", new)
    shutil.move(old, new)


def _decoded(text: str) -> str:
    """Return a name or path as the file system has it."""
    named = text.removeprefix("./")
    return _ESCAPE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), named)
