"""Results as lines of JSON: written once, read as they were written, skipped when they are there."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.experiments.common.store import read_lines, rounded, run_missing


def test_floats_are_rounded_and_what_is_not_finite_becomes_null() -> None:
    found = rounded({"a": [1.23456789, float("nan"), (3, "x", float("inf"))], "b": 123456.789}, digits=4)
    assert found == {"a": [1.235, None, [3, "x", None]], "b": 123500.0}
    json.dumps(found, allow_nan=False)


def test_an_interrupted_matrix_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, ran = tmp_path / "lines.jsonl", []

    def square(number: int) -> dict[str, Any]:
        if number == 3 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(number)
        return {"square": float(number**2)}

    with pytest.raises(KeyboardInterrupt):
        run_missing([1, 2, 3, 4], str, square, path, workers=1)
    with path.open("a") as file:
        file.write('{"key": "3", "squa')  # as a process that was killed leaves it
    assert [line["key"] for line in read_lines(path)] == ["1", "2"]
    lines = run_missing([4, 3, 2, 1], str, square, path, workers=1)
    assert ran == [1, 2, 4, 3]
    assert [(line["key"], line["square"]) for line in lines] == [("4", 16.0), ("3", 9.0), ("2", 4.0), ("1", 1.0)]
    assert set(lines[0]["versions"]) == {"python", "torch", "lightning", "scikit-learn", "lightning-anomaly", "cpu"}
    assert len(path.read_text().splitlines()) == 4


def test_of_a_run_that_was_done_again_the_later_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"key": "{key}", "value": {value}}}\n' for key, value in ((1, 1), (2, 2), (1, 10))))
    assert {line["key"]: line["value"] for line in read_lines(path)} == {"1": 10, "2": 2}


def test_a_damaged_file_of_lines_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "h1.jsonl"
    path.write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"Line 2 of `h1.jsonl` should be JSON"):
        read_lines(path)
    assert read_lines(tmp_path / "none.jsonl") == []


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"loss": 1.5, "layers": {"0": {"count": 1}, "3": {"count": n}}, "found": [[{"a": n}, {}]]} for n in range(9)
    ]
    results = {
        "rows_alike": {"epochs": rows, "none": [], "empty": [{}, {}], "mixed": [{"a": 1}, {"b": 2}], "plain": [1, [2]]},
        "nothing": {"epochs": None},
    }
    path = tmp_path / "lines.jsonl"
    lines = run_missing(list(results), str, results.__getitem__, path, workers=1)
    for line in lines:
        expected = results[line["key"]]
        assert {name: line[name] for name in expected} == expected
    assert path.read_text().count('"loss"') == 1
