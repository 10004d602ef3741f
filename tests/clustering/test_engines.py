"""One interface: who is chosen, what is said about it, and that every engine is one."""

from typing import get_args

import oracle
import pytest
import torch
import zoo

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.em import fit_mixtures
from lightning_anomaly.clustering.engines import Engine, load_engine
from lightning_anomaly.clustering.engines.torch_engine import TorchEngine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.settings import EngineName

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_every_name_of_the_settings_but_auto_is_an_engine():
    auto, *names = get_args(EngineName)
    assert auto == AnalysisSettings().engine == "auto"
    loaded = [load_engine(name) for name in names]
    assert all(isinstance(engine, Engine) for engine in loaded)
    assert len({type(engine) for engine in loaded}) == len(names)


def test_auto_is_numba_which_takes_the_maps_of_a_gpu_to_the_cpu():
    engine = load_engine("auto")
    assert type(engine) is type(load_engine("numba"))
    assert engine.device(GPU) == CPU


def test_torch_stays_where_the_maps_are_unless_there_are_no_doubles():
    engine = load_engine("torch")
    assert engine.device(GPU) == GPU
    assert engine.device(torch.device("mps")) == CPU


def test_maps_go_where_the_engine_wants_them():
    class Recording(TorchEngine):
        def __init__(self):
            self.asked = []

        def device(self, maps):
            self.asked.append(maps)
            return CPU

    engine = Recording()
    reduce_maps(zoo.maps("skewed", 2, 20, (2, 2)), engine)
    assert engine.asked == [CPU]


def test_where_nothing_can_be_stored_numba_s_loops_are_compiled_without_a_cache():
    """A read-only installation without a home: numba looks for a folder, as for what comes from no file, in vain."""
    from lightning_anomaly.clustering.engines._numba_em import compile_loop

    names = {}
    exec("def twice(x): return 2 * x", names)
    assert compile_loop(nogil=True, cache=True)(names["twice"])(3) == 6


@pytest.mark.parametrize("n_starts", [1, 3])
def test_the_sklearn_engine_fits_from_the_start_that_it_is_given(n_starts, no_processes):
    engine = load_engine("sklearn")
    points = zoo.points("skewed", 2, 80)
    centres = kmeans_plus_plus(points, n_starts, 3, 0, engine)
    labels = torch.stack([engine.kmeans(points, centres[:, [s]]) for s in range(n_starts)], 1)
    start = cluster_parameters(points, labels, 3, 1e-6, engine.cluster_moments)
    fit = fit_mixtures(points, *start, engine)
    for f in range(2):
        for s in range(n_starts):
            expected = oracle.fit_mixture(points[f].numpy(), *(tensor[f, s].numpy() for tensor in start))
            for name in ("weights", "means", "covariances", "lower_bound"):
                torch.testing.assert_close(
                    getattr(fit, name)[f, s], torch.as_tensor(getattr(expected, name)), rtol=0, atol=1e-10
                )
            assert fit.labels[f, s].tolist() == expected.labels.tolist()
            assert (fit.n_iter[f, s], fit.converged[f, s]) == (expected.n_iter, expected.converged)


def test_where_the_same_bits_are_asked_for_torch_clusters_on_the_cpu_as_a_gpu_would_refuse() -> None:
    engine = load_engine("torch")
    assert engine.device(GPU) == GPU
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert engine.device(GPU) == GPU
        torch.use_deterministic_algorithms(True)
        assert engine.device(GPU) == CPU
    finally:
        torch.use_deterministic_algorithms(False)
