"""The benchmarks at tiny sizes: the timing, and a measurement of every part."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from recipes.development.benchmarks import __main__ as benchmark
from recipes.development.benchmarks.parts import PARTS
from recipes.development.benchmarks.timing import in_turns


def test_sides_take_turns_and_the_first_turn_is_a_warm_up() -> None:
    calls: list[str] = []
    found = in_turns({name: partial(calls.append, name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert list(found.index) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are Linux's")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("part", PARTS)
def test_every_part_measures_and_writes(part: str, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    rows = benchmark.run(benchmark.parse([part, "--quick", "--json", str(file)]))[part]
    assert json.loads(file.read_text())[part] == rows
    assert rows
    for row in rows:
        assert all(value > 0 for name, value in row.items() if "seconds" in name or name.startswith(("epoch", "file")))
