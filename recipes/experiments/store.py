"""Results as lines of JSON: each run is written once, and runs that have a line are skipped.

Lists of dicts with the same keys, such as the epochs of a run, stand in the file as one dict of lists,
`{"rows": {...}}`: a third of the size. No result may have a dict with the single key "rows".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in a file, oldest first; none if it does not exist.

    Of a run that was done again, the last one. A last line that an interruption cut short is left out; its run counts
    as not finished.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    results = [_unpack(json.loads(line)) for line in whole.splitlines()]
    return list({line["key"]: line for line in results}.values())


def append(path: Path, result: dict[str, Any]) -> None:
    """Write a result as the last line of a file, in place of what an interruption left of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(_pack(result), allow_nan=False) + "\n")


def _pack(value: Any) -> Any:
    """The value with its lists of like dicts turned into dicts of lists, also inside each other."""
    if isinstance(value, dict):
        return {key: _pack(entry) for key, entry in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if not value or not all(isinstance(row, dict) and row and row.keys() == value[0].keys() for row in value):
        return [_pack(entry) for entry in value]
    return {"rows": {key: _pack([row[key] for row in value]) for key in value[0]}}


def _unpack(value: Any) -> Any:
    """What was packed, lists for tuples."""
    if isinstance(value, list):
        return [_unpack(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    unpacked = {key: _unpack(entry) for key, entry in value.items()}
    if unpacked.keys() != {"rows"}:
        return unpacked
    columns = unpacked["rows"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rounded(value: Any) -> Any:
    """Round floats in nested plain values to four significant digits; NaN and infinity become None."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return value
