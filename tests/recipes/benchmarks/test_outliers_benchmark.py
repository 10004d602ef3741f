"""The benchmark of `find_outliers` at a tiny size: that both sides do the same work, and what is written."""

import json
import sys

import pytest
import torch
from torch import nn

from recipes.benchmarks import outliers


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are Linux's")
def test_it_measures_time_and_memory_and_writes_them(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    given = ["--data", "digits", "--network", "lenet5", "--images", "300", "--rounds", "1", "--json", str(file)]
    numbers = outliers.run(outliers.parse(given))
    assert numbers["images"] == 300
    assert numbers["ratio"] > 0
    assert numbers["ratio_of_processor_time_range"] == [numbers["ratio_of_processor_time"]] * 2
    assert 0 < numbers["extra_mib"] < numbers["peak_mib"]
    assert json.loads(file.read_text()) == numbers
    assert "lenet5, 300 images" in capsys.readouterr().out


def test_both_sides_run_on_the_same_batches():
    sizes: dict[str, list[int]] = {"forward": [], "search": []}
    network = nn.Sequential(nn.Conv2d(1, 2, 3))
    for name in sizes:
        hook = network.register_forward_pre_hook(lambda _, inputs, own=sizes[name]: own.append(len(inputs[0])))
        getattr(outliers, name)(network, torch.rand(200, 1, 8, 8))
        hook.remove()
    assert sizes["forward"] == sizes["search"] == [64, 64, 64, 8]
