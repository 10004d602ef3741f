"""The benchmarks at tiny sizes: the timing, and a measurement of every part."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from trainers import SMALL_RUNS

from recipes.benchmarks import __main__ as benchmark
from recipes.benchmarks.parts import PARTS, exponent
from recipes.benchmarks.timing import in_turns, markdown

pytestmark = SMALL_RUNS


def test_sides_take_turns_and_the_first_turn_is_a_warm_up() -> None:
    calls: list[str] = []

    def side(name: str) -> None:
        calls.append(name)
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    found = in_turns({name: partial(side, name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert list(found.index) == ["a", "b"]
    assert 0.01 <= found.seconds["a"] < 0.2


def test_a_table_has_a_row_for_each_row() -> None:
    rows = [{"network": "lenet5", "seconds": 0.012345, "images": 512}]
    assert markdown(rows) == "| network | seconds | images |\n| --- | --- | --- |\n| lenet5 | 0.0123 | 512 |"


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"speed, .*Found sped"):
        benchmark.run(benchmark.parse(["sped"]))


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
