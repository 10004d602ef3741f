"""Loops are compiled once, which is announced."""

import os
import subprocess
import sys

import torch
import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly._internal.compilation import compile_loop
from lightning_anomaly.scores.pixels import pixel_statistics


def test_numba_compiles_without_a_cache_if_no_folder_is_writable():
    """As in a read-only installation without a home; numba also finds no folder for code that is not in a file."""
    names = {}
    exec("def twice(x): return 2 * x", names)
    assert compile_loop(nogil=True, cache=True)(names["twice"])(3) == 6


def test_compilation_of_each_part_is_announced_once_and_only_without_a_cache(tmp_path):
    script = (
        "{}import torch; from lightning_anomaly.filters.settings import AnalysisSettings"
        "; from lightning_anomaly.filters.mixtures import cluster_filters"
        "; [cluster_filters(torch.rand(1, 3, 2).double(), AnalysisSettings()) for _ in range(2)]"
        "; from lightning_anomaly.scores.pixels import pixel_statistics"
        "; [pixel_statistics(torch.rand(1, 1, 8, 8)) for _ in range(2)]"
    )

    def said(first: str = "", **environment: str) -> str:
        options = {"env": {**os.environ, **environment}, "capture_output": True, "text": True}
        code = [sys.executable, "-c", script.format(first)]
        return subprocess.run(code, check=True, timeout=300, **options).stderr

    # Compiling takes long; Python runs these loops as well.
    in_python = "from numba.core.dispatcher import Dispatcher as D; D._compile_for_args = lambda d, *_: d.py_func; "
    first = said(in_python, NUMBA_CACHE_DIR=str(tmp_path))
    assert [str(tmp_path) in line for line in first.splitlines()] == [True, True]
    zoo.analyzed(zoo.captured(zoo.maps("skewed", 1, 20, (1, 1))), AnalysisSettings())  # so that they are in the cache
    pixel_statistics(torch.rand(1, 1, 8, 8))
    assert said() == ""
