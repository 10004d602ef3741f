"""Loops compiled by numba, one filter at a time: the fastest engine on a CPU.

Inner loops run over samples, without branches or calls, on arrays that stay in the first-level cache, so that the
compiler can vectorize them. Sums may be reordered ("reassoc"), but in the same way for every filter.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly.clustering.em_loops import SCALE, expectation_maximisation
from lightning_anomaly.clustering.engine import Engine, MixtureFit, Parameters
from lightning_anomaly.clustering.kmeans_loops import draw_centres, lloyd
from lightning_anomaly.numba_jit import compile_loop

_Array = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


class NumbaEngine(Engine):
    """Runs compiled code on one filter at a time."""

    def __init__(self) -> None:
        _announce_compilation()

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """See `Engine`."""
        in_order = np.sort(points.contiguous().numpy().view(np.complex128)[..., 0], axis=1)
        xs, ys = np.ascontiguousarray(in_order.real), np.ascontiguousarray(in_order.imag)
        centres = np.empty((len(xs), *uniform.shape, 2))
        draw_centres(xs, ys, uniform.numpy(), centres)
        return torch.from_numpy(centres)

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """See `Engine`."""
        xs, ys = _coordinates(points)
        starts, labels = centres.contiguous().numpy(), np.zeros(xs.shape, np.int64)
        lloyd(xs, ys, starts, labels)
        return torch.from_numpy(labels)

    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """See `Engine`."""
        xs, ys = _coordinates(points)
        filters, samples = xs.shape
        weights, means, factors = start
        w, mu, u = (np.array(part.numpy(), order="C") for part in (weights, means, factors * SCALE))
        bounds, n_iter, converged = np.empty(filters), np.zeros(filters, np.int64), np.zeros(filters, np.bool_)
        labels = np.empty((filters, samples), np.int64)
        expectation_maximisation(xs, ys, w, mu, u, max_iter, tol, reg_covar, bounds, n_iter, converged, labels)
        return MixtureFit(*map(torch.from_numpy, (w, mu, u / SCALE, bounds, labels, n_iter, converged)))

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `Engine`."""
        moments = np.zeros((len(points), n_clusters, 6))
        _cluster_moments(*_coordinates(points), labels.contiguous().numpy(), moments)
        tensor = torch.from_numpy(moments)
        return tensor[..., 0], tensor[..., 1:3], tensor[..., 3:]


@cache
def _announce_compilation() -> None:
    """Announce on stderr, once per process, that loops will be compiled if none are cached."""
    folder = expectation_maximisation.stats.cache_path  # type: ignore[attr-defined]
    if folder is None or not any(Path(folder).glob("em_loops.*.nbi")):
        cached = "Every process will do so" if folder is None else f"They are cached in {folder}"
        print(f"lightning_anomaly compiles its loops for up to half a minute. {cached}.", file=sys.stderr)


def _coordinates(points: Tensor) -> tuple[_Array, _Array]:
    """Return the coordinates `(F, N)` of points `(F, N, 2)` as contiguous arrays."""
    return points[..., 0].contiguous().numpy(), points[..., 1].contiguous().numpy()


@compile_loop(nogil=True, cache=True, error_model="numpy")
def _cluster_moments(xs: _Array, ys: _Array, labels: _Integers, moments: _Array) -> None:
    """Write size, means and covariances of each cluster into zeros `(F, K, 6)`."""
    for f in range(len(xs)):
        x, y, label, moment = xs[f], ys[f], labels[f], moments[f]
        for i in range(x.size):
            k = label[i]
            moment[k, 0] += 1.0
            moment[k, 1] += x[i]
            moment[k, 2] += y[i]
        for k in range(len(moment)):
            moment[k, 1:3] /= max(moment[k, 0], 1.0)
        for i in range(x.size):
            k = label[i]
            dx, dy = x[i] - moment[k, 1], y[i] - moment[k, 2]
            moment[k, 3] += dx * dx
            moment[k, 4] += dx * dy
            moment[k, 5] += dy * dy
        for k in range(len(moment)):
            moment[k, 3:] /= max(moment[k, 0], 1.0)
