"""Results as lines of JSON can be read again, even after an interruption."""

import json
from pathlib import Path

from recipes.experiments.store import append, read_lines, rounded


def test_floats_are_rounded_and_null_if_they_are_not_finite() -> None:
    found = rounded({"a": [1.23456789, float("nan"), (3, "x", float("inf"))], "b": 123456.789})
    assert found == {"a": [1.235, None, [3, "x", None]], "b": 123500.0}
    json.dumps(found, allow_nan=False)


def test_lines_can_be_read_again_and_an_incomplete_one_is_dropped(tmp_path: Path) -> None:
    path, rows = tmp_path / "folder" / "lines.jsonl", [{"loss": 1.5, "layers": {"0": {"count": n}}} for n in range(9)]
    first = {"key": "1", "epochs": rows, "none": [], "empty": [{}, {}], "mixed": [{"a": 1}, {"b": [2]}]}
    append(path, first)
    with path.open("a") as file:
        file.write('{"key": "2", "squa')
    assert read_lines(path) == [first]
    append(path, {"key": "2", "value": 1})
    append(path, {"key": "1", "value": None})
    assert read_lines(path) == [{"key": "1", "value": None}, {"key": "2", "value": 1}]
    assert path.read_text().count('"loss"') == 1
    assert read_lines(tmp_path / "none.jsonl") == []
