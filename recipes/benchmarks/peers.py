"""Others that fit many small mixtures or k-means at once, for `python -m recipes.benchmarks --parts peers`.

The same points and the same starts for all, in turn in the same run, and whether the clusters are scikit-learn's. The
others are no dependency, not even of an extra: gmm-gpu 0.2.8 asks for a NumPy below 2 that numba and scikit-learn have
left behind, and works with 2. Who wants to compare installs them without what they ask for; who does not gets the rest.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.clustering.em import REG_COVAR, fit_mixtures
from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from recipes.benchmarks.speed import Row, one_thread, plain_mixtures

__all__ = ["MISSING", "peers"]

MISSING = "not installed: `pip install --no-deps gmm-gpu torch-kmeans`"

Starts = Sequence[tuple[Tensor, Tensor, Tensor]]  # weights, means and precisions for each number of components
Work = Callable[[], Any]


def peers(network: str, points: Tensor, subset: int, rounds: int) -> list[Row]:
    """Time everybody on the points `(F, N, 2)` of a network's live filters, K from 2 to 5.

    scikit-learn and torch-kmeans get some of the filters; their time is scaled to all. scikit-learn's clusters are what
    those of the others are compared with, filter by filter and K by K.
    """
    settings = AnalysisSettings()
    engine = load_engine("torch")
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:subset].sort().values
    numbers = range(2, settings.max_components + 1)
    centres = kmeans_plus_plus(points, settings.n_init, settings.max_components, settings.seed, engine)
    starts: list[tuple[Tensor, Tensor, Tensor]] = []
    for k in numbers:
        labels = engine.kmeans(points, centres[:, :, :k])[:, None]
        starts.append(cluster_parameters(points, labels, k, REG_COVAR, engine.cluster_moments))
    few = points[chosen]
    own_points = [own.numpy() for own in few]
    own_starts = [[[part[i].numpy() for part in start] for start in starts] for i in chosen.tolist()]
    own_centres = [centres[i].numpy() for i in chosen.tolist()]
    names = ["numba", "torch"]

    mixtures: dict[str, Work] = {f"ours, {name}": partial(_our_mixtures, name, points, starts) for name in names}
    mixtures["gmm-gpu, float32"] = partial(_gmm_gpu, points, starts)
    plain = [partial(plain_mixtures, *arguments) for arguments in zip(own_points, own_starts, strict=True)]
    lloyd: dict[str, Work] = {f"ours, {name}": partial(_our_kmeans, name, points, centres, numbers) for name in names}
    lloyd["torch-kmeans, float64"] = partial(_torch_kmeans, few, centres[chosen], numbers)
    plain_lloyd = [
        partial(_plain_kmeans, *arguments, numbers) for arguments in zip(own_points, own_centres, strict=True)
    ]
    return [
        {"network": network, "task": task, "filters": len(points), "subset": len(chosen), **row}
        for task, work, theirs in (("mixtures", mixtures, plain), ("k-means", lloyd, plain_lloyd))
        for row in _race(work, theirs, chosen, len(points), rounds)
    ]


def _race(work: dict[str, Work], theirs: Sequence[Work], chosen: Tensor, filters: int, rounds: int) -> list[Row]:
    """Seconds and CPU seconds of each side, the median over rounds, and whose clusters are scikit-learn's."""
    scale = filters / len(theirs)
    workers = Parallel(n_jobs=-1)
    expected = torch.from_numpy(np.stack([np.stack(one()) for one in theirs]))  # (subset, M, N)
    sides: dict[str, Work] = {
        **work,
        "scikit-learn, a loop": lambda: [one() for one in theirs],
        "scikit-learn, joblib": lambda: workers(delayed(one)() for one in theirs),
    }
    rows: dict[str, Row] = {}
    for name, function in sides.items():
        rows[name] = {"peer": name}
        try:
            labels = function()  # compiles, and starts processes
        except ImportError:
            rows[name]["said"] = MISSING
        except Exception as error:
            rows[name]["said"] = f"fails with {type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            if name in work:
                labels = labels.cpu() if len(labels) == len(expected) else labels.cpu()[chosen]
                same = (_partition(labels) == _partition(expected)).all(2)
                rows[name]["same_clusters"] = same.double().mean().item()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name, row in rows.items() if "said" not in row}
    for _ in range(rounds):
        for name, times in taken.items():
            begun, used = time.perf_counter(), time.process_time()
            if name.endswith("a loop"):
                with one_thread():
                    sides[name]()
            else:
                sides[name]()
            by = 1 if name.startswith(("ours", "gmm-gpu")) else scale
            times.append((by * (time.perf_counter() - begun), by * (time.process_time() - used)))
    for name, times in taken.items():
        rows[name]["seconds"], rows[name]["cpu_seconds"] = (median(column) for column in zip(*times, strict=True))
    return list(rows.values())


def _partition(labels: Tensor) -> Tensor:
    """Labels `(..., N)` whose numbers do not matter: for each sample the first one that is in its cluster."""
    return (labels[..., :, None] == labels[..., None, :]).int().argmax(-1)


def _our_mixtures(name: str, points: Tensor, starts: Starts) -> Tensor:
    return torch.stack([fit_mixtures(points, *start, load_engine(name)).labels[:, 0] for start in starts], 1)


def _gmm_gpu(points: Tensor, starts: Starts) -> Tensor:
    # Its `predict` leaves the weights out, and in float64 its fit fails.
    gmm = import_module("gmm_gpu.gmm").GMM
    labels = []
    for weights, means, precisions in starts:
        given = {"means_init": means, "weights_init": weights, "precisions_init": precisions}
        own = {key: value[:, 0].float() for key, value in given.items()}
        model = gmm(weights.shape[2], device=str(points.device), random_seed=1, **own)
        model.fit(points.float())
        labels.append(model.predict_proba(points.float()).argmax(2))
    return torch.stack(labels, 1)


def _our_kmeans(name: str, points: Tensor, centres: Tensor, numbers: Sequence[int]) -> Tensor:
    return torch.stack([load_engine(name).kmeans(points, centres[:, :, :k]) for k in numbers], 1)


def _torch_kmeans(points: Tensor, centres: Tensor, numbers: Sequence[int]) -> Tensor:
    # Its default tolerance: with 0 it always takes all of its iterations.
    model = import_module("torch_kmeans").KMeans(num_init=centres.shape[1], verbose=False)
    return torch.stack([model(points, k=k, centers=centres[:, :, :k]).labels for k in numbers], 1)


def _plain_kmeans(points: Any, centres: Any, numbers: Sequence[int]) -> list[Any]:
    """Labels `(N,)` for each number of clusters, of one filter's points `(N, 2)` from given starts `(S, K, 2)`."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sparse filters have fewer distinct points than clusters
        for k in numbers:
            fits = [KMeans(k, init=own[:k], n_init=1, tol=0).fit(points) for own in centres]
            found.append(min(fits, key=lambda fit: float(fit.inertia_)).labels_)
    return found
