"""Engines: names, devices, compilation, and threads."""

import os
import subprocess
import sys
import threading
from typing import get_args

import pytest
import torch
import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.engine import Engine, load_engine
from lightning_anomaly.numba_jit import compile_loop
from lightning_anomaly.settings import EngineName
from lightning_anomaly.threads import torch_in_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_every_name_in_the_settings_is_an_engine_and_auto_is_numba():
    auto, *names = get_args(EngineName)
    assert auto == AnalysisSettings().engine == "auto"
    loaded = [load_engine(name) for name in names]
    assert all(isinstance(engine, Engine) for engine in loaded)
    assert len({type(engine) for engine in loaded}) == len(names)
    assert type(load_engine("auto")) is type(load_engine("numba"))


def test_torch_uses_the_device_of_the_maps_unless_it_lacks_float64_or_operations():
    engine = load_engine("torch")
    assert engine.device(GPU) == GPU
    assert engine.device(torch.device("mps")) == load_engine("numba").device(GPU) == CPU
    torch.use_deterministic_algorithms(True)
    try:
        assert engine.device(GPU) == CPU
    finally:
        torch.use_deterministic_algorithms(False)


def test_numba_compiles_without_a_cache_if_no_folder_is_writable():
    """As in a read-only installation without a home; numba also finds no folder for code that is not in a file."""
    names = {}
    exec("def twice(x): return 2 * x", names)
    assert compile_loop(nogil=True, cache=True)(names["twice"])(3) == 6


def test_compilation_is_announced_in_one_line_and_only_without_a_cache(tmp_path):
    script = (
        "import torch; from lightning_anomaly.clustering.engine import load_engine; ones = torch.ones(1, 3, 2).double()"
        "; [load_engine('auto').kmeans_plus_plus(ones, ones[0]) for _ in range(2)]"
    )

    def said(**environment: str) -> str:
        options = {"env": {**os.environ, **environment}, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, "-c", script], check=True, timeout=300, **options).stderr

    first = said(NUMBA_CACHE_DIR=str(tmp_path))
    assert first.count("\n") == 1
    assert str(tmp_path) in first
    zoo.analyzed(zoo.captured(zoo.maps("skewed", 1, 20, (1, 1))), AnalysisSettings())  # so that they are in the cache
    assert said() == ""


def test_threads_use_one_torch_thread_each_and_the_number_is_restored_even_after_an_exception(two_threads):
    results = list(torch_in_threads(lambda item: (item, torch.get_num_threads()), range(5), torch.device("cpu")))
    assert results == [(item, 1) for item in range(5)]
    with pytest.raises(ZeroDivisionError):
        list(torch_in_threads(lambda item: 1 / item, range(2), torch.device("cpu")))
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
