"""Compiled loops of k-means: the draw of centers, Lloyd's algorithm and moments of clusters, see `mixtures.py`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_anomaly._internal.compilation import compile_loop

_Array = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_SAME = 1e-9  # relative difference up to which inertias are equal; absolute for those below 1
_ITERATIONS = 300  # at most, like scikit-learn's KMeans
_DRAW = 32  # samples per partial sum of squared distances; a draw first finds its partial sum


@compile_loop(forceinline=True, fastmath={"contract"})
def _squared_distance(x: float, y: float, cx: float, cy: float) -> float:
    dx, dy = x - cx, y - cy
    return dx * dx + dy * dy


@compile_loop(fastmath={"contract", "reassoc"}, forceinline=True)
def _cluster_sums(x: _Array, y: _Array, label: _Integers, k: int) -> tuple[float, float, float]:
    """Compute size and sums of one cluster, with the same instructions for every cluster."""
    size, sx, sy = 0.0, 0.0, 0.0
    for i in range(x.size):
        member = 1.0 if label[i] == k else 0.0  # multiplying is a fifth faster than branching
        size += member
        sx += member * x[i]
        sy += member * y[i]
    return size, sx, sy


@compile_loop(error_model="numpy")
def _draw_sample(distance: _Array, sums: _Array, uniform: float) -> int:
    """Find the first sample whose cumulative distance exceeds the fraction `uniform` of the total, or the last one."""
    target = uniform * sums.sum()
    before, b = 0.0, 0
    while b < sums.size - 1 and before + sums[b] <= target:
        before += sums[b]
        b += 1
    chosen = distance.size - 1
    for i in range(b * _DRAW, min(distance.size, b * _DRAW + _DRAW)):
        if distance[i] > 0.0:
            before += distance[i]
            chosen = i
            if before > target:
                break
    return chosen


@compile_loop(fastmath={"contract", "reassoc"}, error_model="numpy", forceinline=True)
def _lloyd_from(x: _Array, y: _Array, c: _Array, label: _Integers, distance: _Array) -> float:
    """Run Lloyd's algorithm, update centers `c` and labels in place, and return the inertia."""
    clusters = len(c)
    inertia = np.inf
    for _ in range(_ITERATIONS):
        second = min(1, clusters - 1)
        ax, ay, bx, by = c[0, 0], c[0, 1], c[second, 0], c[second, 1]
        for i in range(x.size):
            d, e = _squared_distance(x[i], y[i], ax, ay), _squared_distance(x[i], y[i], bx, by)
            label[i] = 1 if e < d else 0
            distance[i] = e if e < d else d
        for k in range(2, clusters):
            ax, ay = c[k, 0], c[k, 1]
            for i in range(x.size):
                d = _squared_distance(x[i], y[i], ax, ay)
                label[i] = k if d < distance[i] else label[i]
                distance[i] = d if d < distance[i] else distance[i]
        previous = inertia
        inertia = distance.sum()
        if not inertia < previous:
            break
        moved = False
        for k in range(clusters):
            size, sx, sy = _cluster_sums(x, y, label, k)
            if size > 0:
                sx, sy = sx / size, sy / size
                moved |= sx != c[k, 0] or sy != c[k, 1]
                c[k, 0], c[k, 1] = sx, sy
        if not moved:
            break
    return inertia


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def lloyd_loop(xs: _Array, ys: _Array, centers: _Array, labels: _Integers) -> None:
    """Find the labels `(F, N)` of the best clustering from centers `(F, S, K, 2)`, which are changed."""
    label, distance = np.empty(xs.shape[1], np.int64), np.empty(xs.shape[1])
    for f in range(len(xs)):
        best = np.inf
        for s in range(centers.shape[1]):
            inertia = _lloyd_from(xs[f], ys[f], centers[f, s], label, distance)
            if inertia + _SAME * max(1.0, inertia) < best:
                best = inertia
                for i in range(label.size):  # numba takes seconds to compile the arithmetic of slices
                    labels[f, i] = label[i]


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def draw_centers_loop(xs: _Array, ys: _Array, uniform: _Array, centers: _Array) -> None:
    """Draw samples with probabilities proportional to the squared distance from the nearest center."""
    n, clusters = xs.shape[1], uniform.shape[1]
    distance, sums = np.empty(n), np.empty(-(-n // _DRAW))
    for f in range(len(xs)):
        x, y = xs[f], ys[f]
        for s in range(uniform.shape[0]):
            for i in range(n):
                distance[i] = np.inf
            chosen = min(int(uniform[s, 0] * n), n - 1)
            for k in range(clusters):
                if k > 0:
                    chosen = _draw_sample(distance, sums, uniform[s, k])
                cx, cy = x[chosen], y[chosen]
                centers[f, s, k, 0], centers[f, s, k, 1] = cx, cy
                for b in range(sums.size):
                    total = 0.0
                    for i in range(b * _DRAW, min(n, b * _DRAW + _DRAW)):
                        d = _squared_distance(x[i], y[i], cx, cy)
                        d = d if d < distance[i] else distance[i]
                        distance[i] = d
                        total += d
                    sums[b] = total


@compile_loop(nogil=True, cache=True, error_model="numpy")
def cluster_moments_loop(xs: _Array, ys: _Array, labels: _Integers, moments: _Array) -> None:
    """Write size, means and covariances of each cluster into zeros `(F, K, 6)`."""
    for f in range(len(xs)):
        x, y, label, moment = xs[f], ys[f], labels[f], moments[f]
        for i in range(x.size):
            k = label[i]
            moment[k, 0] += 1.0
            moment[k, 1] += x[i]
            moment[k, 2] += y[i]
        for k in range(len(moment)):
            size = max(moment[k, 0], 1.0)
            moment[k, 1] /= size
            moment[k, 2] /= size
        for i in range(x.size):
            k = label[i]
            dx, dy = x[i] - moment[k, 1], y[i] - moment[k, 2]
            moment[k, 3] += dx * dx
            moment[k, 4] += dx * dy
            moment[k, 5] += dy * dy
        for k in range(len(moment)):
            size = max(moment[k, 0], 1.0)
            moment[k, 3] /= size
            moment[k, 4] /= size
            moment[k, 5] /= size
