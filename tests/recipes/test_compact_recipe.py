"""The recipe that compacts says what is gained."""

import pytest

from recipes.compact import parse, run

pytest.importorskip("torch_pruning")


def test_the_recipe_measures_what_is_gained(capsys):
    gain = run(parse(["--networks", "lenet5", "--repeats", "2", "--batch-size", "2", "--side", "32"]))["lenet5"]
    assert gain.masked == gain.removed == 5
    assert gain.parameters[1] < gain.parameters[0] == 83_126
    assert gain.difference < 1e-5
    assert min(gain.seconds) > 0
    assert "lenet5: 5 of 5 masked filters removed, 83,126 -> 64,866 parameters (-22%)" in capsys.readouterr().out
