"""Compiled loops of k-means: the draw of centres and Lloyd's algorithm, see `numba_engine.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_anomaly._internal.compilation import compile_loop
from lightning_anomaly.filters.parameters import KMEANS_ITERATIONS, SAME

_Array = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.floating[Any]]  # of either precision, like labels
_Labels = npt.NDArray[np.signedinteger[Any]]
_Keys = npt.NDArray[np.uint64]
_CLOSE = 1 + 1e-3  # ratio of inertias that float32 may confuse, with a wide margin
_DRAW = 32  # samples per partial sum of squared distances; a draw first finds its partial sum
_MIX, _STIR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(29)


@compile_loop(forceinline=True, fastmath={"contract"})
def _squared_distance(x: float, y: float, cx: float, cy: float) -> float:
    dx, dy = x - cx, y - cy
    return dx * dx + dy * dy


@compile_loop(fastmath={"contract", "reassoc"}, forceinline=True)
def _sums(x: _Floats, y: _Floats, label: _Labels, k: int) -> tuple[float, float, float]:
    """Compute size and sums of one cluster in the type of the points, with the same instructions for every cluster."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    size, sx, sy = zero, zero, zero
    for i in range(x.size):
        member = one if label[i] == k else zero  # multiplying is a fifth faster than branching
        size += member
        sx += member * x[i]
        sy += member * y[i]
    return size, sx, sy


@compile_loop(forceinline=True)
def _hash(x: float, y: float) -> np.uint64:
    """Hash two doubles to 64 bits, such that sums of a few thousand hashes do not collide."""
    h = np.float64(x).view(np.uint64) * _MIX
    h ^= h >> _SHIFT
    h = (h + np.float64(y).view(np.uint64)) * _STIR
    h ^= h >> _SHIFT
    key: np.uint64 = h * _MIX
    return key


@compile_loop(error_model="numpy")
def _inverse(distance: _Array, sums: _Array, uniform: float) -> int:
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
def _descend(
    x: _Floats, y: _Floats, c: _Floats, label: _Labels, distance: _Floats, seen: _Keys, n_seen: int
) -> tuple[float, int]:
    """Run Lloyd's algorithm and update centres `c` in place; return the inertia and the number of `seen` centres.

    The inertia is infinity if the centres are among the `n_seen` of earlier starts, which the run would repeat.
    """
    clusters = len(c)
    inertia = np.inf
    for _ in range(KMEANS_ITERATIONS):
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
        inertia = np.float64(distance.sum())
        if not inertia < previous:
            break
        key = np.uint64(0)
        for k in range(clusters):  # the order of the centres does not matter
            key += _hash(c[k, 0], c[k, 1])
        repeated = False
        for j in range(n_seen):
            repeated |= seen[j] == key
        if repeated:
            return np.inf, n_seen
        seen[n_seen] = key
        n_seen += 1
        moved = False
        for k in range(clusters):
            size, sx, sy = _sums(x, y, label, k)
            if size > 0:
                sx, sy = sx / size, sy / size
                moved |= sx != c[k, 0] or sy != c[k, 1]
                c[k, 0], c[k, 1] = sx, sy
        if not moved:
            break
    return inertia, n_seen


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def lloyd(xs: _Array, ys: _Array, centres: _Array, labels: _Integers) -> None:
    """Find the best of several k-means clusterings; starts run in float32, and the close ones go on in float64."""
    n, starts = xs.shape[1], centres.shape[1]
    label, distance = np.empty(n, np.int64), np.empty(n)
    rough_label, rough_distance = np.empty(n, np.int32), np.empty(n, np.float32)
    seen = np.empty(starts * KMEANS_ITERATIONS, np.uint64)
    inertias = np.empty(starts)
    for f in range(len(xs)):
        x, y = xs[f].astype(np.float32), ys[f].astype(np.float32)
        c = centres[f].astype(np.float32)
        n_seen = 0
        for s in range(starts):
            inertias[s], n_seen = _descend(x, y, c[s], rough_label, rough_distance, seen, n_seen)
        close = _CLOSE * inertias.min()
        best = np.inf
        n_seen = 0
        for s in range(starts):
            if inertias[s] <= close:
                fine = c[s].astype(np.float64)
                inertia, n_seen = _descend(xs[f], ys[f], fine, label, distance, seen, n_seen)
                if inertia + SAME * max(1.0, inertia) < best:
                    best = inertia
                    labels[f] = label


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def draw_centres(xs: _Array, ys: _Array, uniform: _Array, centres: _Array) -> None:
    """Draw samples with probabilities proportional to the squared distance from the nearest centre."""
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
                    chosen = _inverse(distance, sums, uniform[s, k])
                cx, cy = x[chosen], y[chosen]
                centres[f, s, k, 0], centres[f, s, k, 1] = cx, cy
                for b in range(sums.size):
                    total = 0.0
                    for i in range(b * _DRAW, min(n, b * _DRAW + _DRAW)):
                        d = _squared_distance(x[i], y[i], cx, cy)
                        d = d if d < distance[i] else distance[i]
                        distance[i] = d
                        total += d
                    sums[b] = total
