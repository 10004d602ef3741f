"""Loops are compiled once, which is announced."""

import os
import subprocess
import sys

import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.numba_jit import compile_loop


def test_numba_compiles_without_a_cache_if_no_folder_is_writable():
    """As in a read-only installation without a home; numba also finds no folder for code that is not in a file."""
    names = {}
    exec("def twice(x): return 2 * x", names)
    assert compile_loop(nogil=True, cache=True)(names["twice"])(3) == 6


def test_compilation_is_announced_in_one_line_and_only_without_a_cache(tmp_path):
    script = (
        "import torch; from lightning_anomaly.clustering.engine import load_engine; ones = torch.ones(1, 3, 2).double()"
        "; [load_engine('numba').kmeans_plus_plus(ones, ones[0]) for _ in range(2)]"
    )

    def said(**environment: str) -> str:
        options = {"env": {**os.environ, **environment}, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, "-c", script], check=True, timeout=300, **options).stderr

    first = said(NUMBA_CACHE_DIR=str(tmp_path))
    assert first.count("\n") == 1
    assert str(tmp_path) in first
    zoo.analyzed(zoo.captured(zoo.maps("skewed", 1, 20, (1, 1))), AnalysisSettings())  # so that they are in the cache
    assert said() == ""
