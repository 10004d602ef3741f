"""Results as lines of JSON, one for each run.

Lists of dicts with equal keys, such as the epochs of a run, are stored as one dict of lists, `{"rows": {...}}`, which
takes a third of the size. No result may have a dict with the single key "rows".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the results of a file, oldest first; an empty list if it does not exist.

    The last line of a run counts. An incomplete last line, left by an interruption, is skipped.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    results = [_unpack(json.loads(line)) for line in whole.splitlines()]
    return list({line["key"]: line for line in results}.values())


def append(path: Path, result: dict[str, Any]) -> None:
    """Append a result to a file; it replaces an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(_pack(result), allow_nan=False) + "\n")


def _pack(value: Any) -> Any:
    """Turn lists of dicts with equal keys into dicts of lists, recursively."""
    if isinstance(value, dict):
        return {key: _pack(entry) for key, entry in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if not value or not all(isinstance(row, dict) and row and row.keys() == value[0].keys() for row in value):
        return [_pack(entry) for entry in value]
    return {"rows": {key: _pack([row[key] for row in value]) for key in value[0]}}


def _unpack(value: Any) -> Any:
    """Undo `_pack`; tuples become lists."""
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
