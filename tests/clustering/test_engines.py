"""One interface: who is chosen, where it works, ranks that are looked up, and threads."""

import os
import subprocess
import sys
import threading
from typing import get_args

import oracle
import pytest
import torch
import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.engine import Engine, load_engine
from lightning_anomaly.clustering.mixtures import MAX_ITER, REG_COVAR, TOL, cluster_parameters, kmeans_plus_plus
from lightning_anomaly.numba_jit import compile_loop
from lightning_anomaly.settings import EngineName
from lightning_anomaly.threads import torch_in_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_every_name_of_the_settings_is_an_engine_and_auto_is_numba():
    auto, *names = get_args(EngineName)
    assert auto == AnalysisSettings().engine == "auto"
    loaded = [load_engine(name) for name in names]
    assert all(isinstance(engine, Engine) for engine in loaded)
    assert len({type(engine) for engine in loaded}) == len(names)
    assert type(load_engine("auto")) is type(load_engine("numba"))


def test_torch_stays_where_the_maps_are_unless_there_are_no_doubles_or_operations_are_refused():
    engine = load_engine("torch")
    assert engine.device(GPU) == GPU
    assert engine.device(torch.device("mps")) == load_engine("numba").device(GPU) == CPU
    torch.use_deterministic_algorithms(True)
    try:
        assert engine.device(GPU) == CPU
    finally:
        torch.use_deterministic_algorithms(False)


def test_where_nothing_can_be_stored_numba_s_loops_are_compiled_without_a_cache():
    """A read-only installation without a home: numba looks for a folder, as for what comes from no file, in vain."""
    names = {}
    exec("def twice(x): return 2 * x", names)
    assert compile_loop(nogil=True, cache=True)(names["twice"])(3) == 6


def test_that_loops_must_be_compiled_is_one_line_and_nothing_is_said_of_those_in_the_cache(tmp_path):
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
    zoo.analyzed(zoo.captured(zoo.maps("skewed", 1, 20, (1, 1))), AnalysisSettings())  # compiles them at the latest
    assert said() == ""


def test_the_sklearn_engine_fits_from_the_start_that_it_is_given():
    engine = load_engine("sklearn")
    points = zoo.points("skewed", 2, 80)
    start = cluster_parameters(points, engine.kmeans(points, kmeans_plus_plus(points, 2, 3, 0, engine)), 3, engine)
    fit = engine.em(points, start, MAX_ITER, TOL, REG_COVAR)
    weights, means, factors = (part.numpy() for part in start)
    for f, own in enumerate(zip(points.numpy(), weights, means, oracle.precisions(factors), strict=True)):
        oracle.assert_equal_fit(fit, f, oracle.fit_mixture(*own))


def test_each_thread_works_alone_and_the_setting_is_as_before_also_after_an_exception(two_threads):
    found = list(torch_in_threads(lambda own: (own, torch.get_num_threads()), range(5), torch.device("cpu")))
    assert found == [(own, 1) for own in range(5)]
    with pytest.raises(ZeroDivisionError):
        list(torch_in_threads(lambda own: 1 / own, range(2), torch.device("cpu")))
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
