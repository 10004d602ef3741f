"""Both engines against a loop over scikit-learn, for `python -m recipes.benchmarks`.

Both sides get the same points or maps and the same starts, and take their turns in several rounds, so that a machine
that slows down slows both; a ratio is taken within a round.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from lightning_anomaly import AnalysisSettings
from lightning_anomaly.analysis import analyze_maps
from lightning_anomaly.capture.maps import LayerMaps
from lightning_anomaly.clustering.choice import Clustering, cluster_filters
from lightning_anomaly.clustering.em import MAX_ITER, REG_COVAR, TOL, fit_mixtures
from lightning_anomaly.clustering.engines import load_engine
from lightning_anomaly.clustering.engines.sklearn_engine import fit_filter
from lightning_anomaly.clustering.kmeans import kmeans_plus_plus
from lightning_anomaly.clustering.moments import cluster_parameters
from lightning_anomaly.clustering.pca import reduce_maps
from lightning_anomaly.clustering.ties import first_largest
from lightning_anomaly.verdicts.rare import outlier_samples

__all__ = ["Row", "live_points", "one_thread", "plain_mixtures", "speed", "timed"]

Row = dict[str, Any]
Maps = Mapping[str, LayerMaps]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a function takes, GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def live_points(maps: Maps) -> tuple[Tensor, list[Tensor]]:
    """Points `(F, N, 2)` of the live filters of all layers, and each one's maps `(N, P)`."""
    points, rows = [], []
    for layer in maps.values():
        reduction = reduce_maps(layer.maps, load_engine("torch"))
        points.append(reduction.points[reduction.live])
        rows += list(layer.maps.flatten(2).double()[:, reduction.live].unbind(1))
    return torch.cat(points), rows


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP inside."""
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def plain_mixtures(points: Any, starts: Iterable[Sequence[Any]]) -> list[Any]:
    """Labels `(N,)` for each number of components, of one filter's points `(N, 2)` from given starts."""
    return [fit_filter(points, *start, max_iter=MAX_ITER, tol=TOL, reg_covar=REG_COVAR)[4][0] for start in starts]


def plain_analysis(rows: Any, starts: Sequence[Sequence[Any]] | None, centres: Any) -> tuple[list[Any], list[float]]:
    """Labels and Calinski-Harabasz indices of one filter's maps `(N, P)`.

    Args:
        rows: The maps.
        starts: Where the mixtures start, for each number of components. None lets `KMeans` look for it.
        centres: Where k-means starts, `(S, K, 2)`.
    """
    pca = PCA(min(2, rows.shape[1]), svd_solver="full").fit(rows)
    largest = np.take_along_axis(pca.components_, np.abs(pca.components_).argmax(1)[:, None], 1)[:, 0]
    points = pca.transform(rows) * np.where(largest < 0, -1, 1)
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1]))) / points[:, 0].std()
    if starts is None:
        starts = [_kmeans_start(points, centres[:, :k]) for k in range(2, centres.shape[1] + 1)]
    labels = plain_mixtures(points, starts)
    return labels, [calinski_harabasz_score(points, own) if len(set(own)) > 1 else 0.0 for own in labels]


def _kmeans_start(points: Any, centres: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sparse filters have fewer distinct points than clusters
        fits = [KMeans(len(own), init=own, n_init=1, tol=0).fit(points) for own in centres]
    labels = min(fits, key=lambda fit: float(fit.inertia_)).labels_
    tensors = torch.from_numpy(points)[None], torch.from_numpy(labels).long()[None, None]
    return [
        tensor[0].numpy()
        for tensor in cluster_parameters(*tensors, centres.shape[1], REG_COVAR, load_engine("torch").cluster_moments)
    ]


@dataclass(frozen=True)
class Case:
    """One thing to do in four ways: on all live filters by an engine of ours, on some of them by scikit-learn."""

    name: str
    ours: Callable[[Any], Any]
    theirs: Callable[..., Any]
    arguments: Sequence[tuple[Any, ...]]
    rounds: int


def speed(network: str, maps: Maps, subset: int, rounds: int) -> list[Row]:
    """Time the engines of numba and torch against loops over scikit-learn on the same maps and starts.

    scikit-learn gets a random subset of the live filters; its time is scaled to all of them.
    """
    settings = AnalysisSettings()
    engine = load_engine(settings.engine)
    points, rows = live_points(maps)
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:subset].sort().values.tolist()
    centres = kmeans_plus_plus(points, settings.n_init, settings.max_components, settings.seed, engine)
    numbers = range(2, settings.max_components + 1)
    starts = []
    for k in numbers:
        labels = engine.kmeans(points, centres[:, :, :k])[:, None]
        starts.append(cluster_parameters(points, labels, k, REG_COVAR, engine.cluster_moments))
    own_points = [points[i].numpy() for i in chosen]
    own_rows = [rows[i].numpy() for i in chosen]
    own_starts = [[[tensor[i].numpy() for tensor in start] for start in starts] for i in chosen]
    own_centres = [centres[i].numpy() for i in chosen]
    cases = [
        Case(
            "mixtures",
            lambda name: [fit_mixtures(points, *start, load_engine(name)) for start in starts],
            plain_mixtures,
            list(zip(own_points, own_starts, strict=True)),
            rounds,
        ),
        Case(
            "analysis, starts given to scikit-learn",
            lambda name: analyze_maps(maps, replace(settings, engine=name)),
            plain_analysis,
            list(zip(own_rows, own_starts, own_centres, strict=True)),
            rounds,
        ),
        Case(
            "analysis, k-means by scikit-learn too",
            lambda name: analyze_maps(maps, replace(settings, engine=name)),
            plain_analysis,
            [(own, None, own_centre) for own, own_centre in zip(own_rows, own_centres, strict=True)],
            1,
        ),
    ]
    found = [plain_analysis(*arguments) for arguments in cases[1].arguments]
    same = _agreement(points[chosen], found, settings)
    table = [{"network": network, **_race(case, len(points))} for case in cases]
    return [{**row, **same} for row in table]


def _agreement(points: Tensor, found: Sequence[tuple[list[Any], list[float]]], settings: AnalysisSettings) -> Row:
    """Shares of filters for which both sides give the same number of components, verdict and outlier samples."""
    ours = cluster_filters(points, settings, load_engine(settings.engine))
    labels = torch.stack([torch.from_numpy(np.stack(own)) for own, _ in found])
    index = torch.tensor([index for _, index in found], dtype=torch.float64)
    theirs = Clustering(ours.n_components, labels, index, first_largest(index))
    outliers = [outlier_samples(side, settings.rare_fraction, settings.rule) for side in (ours, theirs)]
    return {
        "same_k": (ours.best == theirs.best).double().mean().item(),
        "same_verdict": (outliers[0].any(1) == outliers[1].any(1)).double().mean().item(),
        "same_outliers": (outliers[0] == outliers[1]).all(1).double().mean().item(),
    }


def _race(case: Case, filters: int) -> Row:
    """Seconds for all filters of each side, the median over rounds, and the ratios with their range."""
    scale = filters / len(case.arguments)
    workers = Parallel(n_jobs=-1)
    seconds: dict[str, list[float]] = {"numba": [], "torch": [], "loop": [], "joblib": []}
    for name in ("numba", "torch"):
        case.ours(name)  # compiles, or loads what was compiled
    workers(delayed(case.theirs)(*arguments) for arguments in case.arguments[:8])  # starts the processes
    for _ in range(case.rounds):
        for name in ("numba", "torch"):
            seconds[name].append(timed(partial(case.ours, name)))
        with one_thread():
            seconds["loop"].append(scale * timed(lambda: [case.theirs(*arguments) for arguments in case.arguments]))
        seconds["joblib"].append(
            scale * timed(lambda: workers(delayed(case.theirs)(*arguments) for arguments in case.arguments))
        )
    row: Row = {"case": case.name, "filters": filters, "subset": len(case.arguments), "rounds": case.rounds}
    row |= {f"{side}_seconds": median(values) for side, values in seconds.items()}
    for ours in ("numba", "torch"):
        for theirs in ("loop", "joblib"):
            ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            row[f"{ours}_over_{theirs}"] = median(ratios)
            row[f"{ours}_over_{theirs}_range"] = [min(ratios), max(ratios)]
    return row
