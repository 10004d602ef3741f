"""Loops compiled by numba, one filter at a time.

Inner loops run over samples, without branches or calls, on arrays that stay in the first-level cache, so that the
compiler can vectorize them. Sums may be reordered ("reassoc"), but in the same way for every filter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_anomaly._internal.compilation import announce_compilation, compile_loop
from lightning_anomaly.filters.em_loops import SCALE, expectation_maximisation
from lightning_anomaly.filters.kmeans_loops import draw_centres, lloyd
from lightning_anomaly.filters.parameters import MixtureFit, Parameters

_Array = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


class NumbaEngine:
    """The expensive operations of an analysis, on the CPU; it loops over filters in compiled code.

    Points are float64, in units of their spread. No operation changes its arguments, and a filter's result does not
    depend on other filters.
    """

    def __init__(self) -> None:
        announce_compilation(expectation_maximisation)

    def pca(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the scores `(F, N, 2)` on the first two principal components, and their axes `(F, P, 2)`.

        `rows` are centred maps `(F, N, P)` of filters that are not constant. If P is 1, the second scores are zero.
        Axes have any length and either direction.
        """
        samples, pixels = rows.shape[1:]
        if pixels == 1:
            return torch.cat([rows, torch.zeros_like(rows)], 2), rows.new_ones(len(rows), 1, 2)
        # Computes all eigenvectors: iterating for the first two took two to five times as long, for 25 to 256 pixels.
        # Scores are always products with the maps, so that equal maps give equal points.
        if samples < pixels:
            values, vectors = (part[..., -2:] for part in torch.linalg.eigh(rows @ rows.transpose(1, 2)))
            smallest = torch.finfo(rows.dtype).eps * values[:, 1:]  # positive despite rounding
            axes = rows.transpose(1, 2) @ vectors / values.clamp(min=smallest).sqrt()[:, None]
        else:
            axes = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -2:]
        axes = axes.flip(2)
        return rows @ axes, axes

    def kmeans_plus_plus(self, points: Tensor, uniform: Tensor) -> Tensor:
        """Draw centres `(F, S, K, 2)` among points `(F, N, 2)` by k-means++.

        Random numbers `uniform` `(S, K)` from 0 to 1 choose among the points, sorted by first and second coordinate.
        """
        in_order = np.sort(points.contiguous().numpy().view(np.complex128)[..., 0], axis=1)
        xs, ys = np.ascontiguousarray(in_order.real), np.ascontiguousarray(in_order.imag)
        centres = np.empty((len(xs), *uniform.shape, 2))
        draw_centres(xs, ys, uniform.numpy(), centres)
        return torch.from_numpy(centres)

    def kmeans(self, points: Tensor, centres: Tensor) -> Tensor:
        """Run Lloyd's algorithm on points `(F, N, 2)` from starts `(F, S, K, 2)`, until inertias no longer fall.

        Returns the labels `(F, N)` of the first start with the smallest inertia, up to rounding. Of equally near
        centres the first one wins. A centre without points does not move.
        """
        xs, ys = _coordinates(points)
        starts, labels = np.array(centres.numpy(), order="C"), np.zeros(xs.shape, np.int64)
        lloyd(xs, ys, starts, labels)
        return torch.from_numpy(labels)

    def em(self, points: Tensor, start: Parameters, max_iter: int, tol: float, reg_covar: float) -> MixtureFit:
        """Run expectation maximization on points `(F, N, 2)`, with the steps of scikit-learn's `GaussianMixture`.

        A mixture has converged when its lower bound changes by less than `tol` (nats). `reg_covar` is added to the
        variances (squared units of the points).
        """
        xs, ys = _coordinates(points)
        filters, samples = xs.shape
        weights, means, factors = start
        w, mu, u = (np.array(part.numpy(), order="C") for part in (weights, means, factors * SCALE))
        bounds, n_iter, converged = np.empty(filters), np.zeros(filters, np.int64), np.zeros(filters, np.bool_)
        labels = np.empty((filters, samples), np.int64)
        expectation_maximisation(xs, ys, w, mu, u, max_iter, tol, reg_covar, bounds, n_iter, converged, labels)
        return MixtureFit(*map(torch.from_numpy, (w, mu, u / SCALE, bounds, labels, n_iter, converged)))

    def cluster_moments(self, points: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute sizes `(F, K)`, means `(F, K, 2)` and covariances xx, xy, yy `(F, K, 3)` of clusters of points.

        `points` are `(F, N, 2)`, `labels` `(F, N)`. Empty clusters give zeros.
        """
        moments = np.zeros((len(points), n_clusters, 6))
        _cluster_moments(*_coordinates(points), labels.contiguous().numpy(), moments)
        tensor = torch.from_numpy(moments)
        return tensor[..., 0], tensor[..., 1:3], tensor[..., 3:]


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
