"""The benchmark of `find_outliers` at a tiny size: that both sides run on the same images, and what is written."""

import json
import sys

import pytest

from recipes.benchmarks import outliers


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are Linux's")
def test_it_measures_time_and_memory_and_writes_them(tmp_path, capsys, monkeypatch):
    sizes = []
    real = outliers.find_outliers
    monkeypatch.setattr(outliers, "find_outliers", lambda *args, **kwargs: sizes.append(len(args[1])) or real(*args))
    file = tmp_path / "numbers.json"
    given = ["--data", "digits", "--network", "lenet5", "--images", "300", "--rounds", "2", "--json", str(file)]
    numbers = outliers.run(outliers.parse(given))
    assert sizes == [200, 300, 300]
    assert numbers["ratio"] > 0
    low, high = numbers["ratio_of_processor_time_range"]
    assert low <= numbers["ratio_of_processor_time"] <= high
    assert 0 < numbers["extra_mib"] < numbers["peak_mib"]
    assert json.loads(file.read_text()) == numbers
    assert capsys.readouterr().out.startswith("lenet5, 300 images")
