"""The loops of `mixture.py` and `starts.py`, compiled by numba: the same formulas, a filter at a time.

Everything here is private to those two, which fall back to torch where numba is missing. Threads are Python's own (the
kernels release the interpreter lock) and end with each call: numba's OpenMP pool would abort any process that forks
afterwards, as a `DataLoader` with workers does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["em", "kmeans"]

_Array = npt.NDArray[np.float64]
_LOG_2PI = float(np.log(2 * np.pi))
_EMPTY = 10 * float(np.finfo(np.float64).eps)  # what scikit-learn adds to every component's count
_LOG2E = float(np.log2(np.e))
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10  # ln 2 in two parts
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits


@numba.njit(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential of `x <= 0` to one unit in the last place, written so that the compiler turns it into vector code."""
    x = max(x, -708.0)
    shifted = x * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW  # |r| <= ln(2) / 2, where 13 terms of the series suffice
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    bits = (np.float64(shifted).view(np.int64) << np.int64(52)) + np.int64(4607182418800017408)
    scale = np.int64(bits).view(np.float64)  # 2**n
    return p * scale


@numba.njit(inline="always", fastmath={"contract"})
def _log_joint(x, y, weights, means, factors, log_joint, largest):  # type: ignore[no-untyped-def]
    """Fill `log_joint` `(K, N)` with log(pi_k N(x | k)), and `largest` `(N,)` with its maximum over k."""
    for k in range(weights.size):
        u11, u12, u22 = factors[k, 0], factors[k, 1], factors[k, 2]
        mx, my = means[k, 0], means[k, 1]
        constant = np.log(weights[k]) + np.log(u11) + np.log(u22) - _LOG_2PI
        row = log_joint[k]
        for i in range(x.size):
            dx, dy = x[i] - mx, y[i] - my
            y1 = u11 * dx
            y2 = u12 * dx + u22 * dy
            row[i] = constant - 0.5 * (y1 * y1 + y2 * y2)
        if k == 0:
            for i in range(x.size):
                largest[i] = row[i]
        else:
            for i in range(x.size):
                largest[i] = max(largest[i], row[i])


@numba.njit(fastmath={"contract", "reassoc"}, inline="always")
def _sum_log(values):  # type: ignore[no-untyped-def]
    """Sum of the logarithms, by logarithms of products: 4 factors within [1, 64] each cannot overflow."""
    total = 0.0
    n = values.size
    for i in range(n // 8):
        j = 8 * i
        p = (values[j] * values[j + 1]) * (values[j + 2] * values[j + 3])
        q = (values[j + 4] * values[j + 5]) * (values[j + 6] * values[j + 7])
        total += np.log(p * q)
    for j in range(8 * (n // 8), n):
        total += np.log(values[j])
    return total


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _run(xs, ys, weights, means, factors, max_iter, tol, reg, bounds, n_iter, converged, labels, first, last):  # type: ignore[no-untyped-def]
    """EM for the mixtures `first` to `last`, each from its own start; parameters are updated in place."""
    n, components = xs.shape[1], weights.shape[1]
    starts = weights.shape[0] // xs.shape[0]
    log_joint = np.empty((components, n))
    largest = np.empty(n)
    total = np.empty(n)
    for m in range(first, last):
        x, y = xs[m // starts], ys[m // starts]
        w, mu, u = weights[m], means[m], factors[m]
        bound = -np.inf
        for iteration in range(1, max_iter + 1):
            _log_joint(x, y, w, mu, u, log_joint, largest)
            for k in range(components):
                row = log_joint[k]
                if k == 0:
                    for i in range(n):
                        row[i] = _exp(row[i] - largest[i])
                        total[i] = row[i]
                else:
                    for i in range(n):
                        row[i] = _exp(row[i] - largest[i])
                        total[i] += row[i]
            previous = bound
            bound = (largest.sum() + _sum_log(total)) / n
            for i in range(n):
                total[i] = 1.0 / total[i]
            count = 0.0
            for k in range(components):
                row = log_joint[k]
                u11, u12, u22 = u[k, 0], u[k, 1], u[k, 2]
                mx, my = mu[k, 0], mu[k, 1]
                s, s1, s2, s11, s12, s22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                for i in range(n):
                    r = row[i] * total[i]
                    dx, dy = x[i] - mx, y[i] - my
                    y1 = u11 * dx
                    y2 = u12 * dx + u22 * dy
                    r1, r2 = r * y1, r * y2
                    s += r
                    s1 += r1
                    s2 += r2
                    s11 += r1 * y1
                    s12 += r1 * y2
                    s22 += r2 * y2
                nk = s + _EMPTY
                l11, l22 = 1.0 / u11, 1.0 / u22
                l21 = -u12 * l11 * l22
                new_x = (mx * s + l11 * s1) / nk
                new_y = (my * s + l21 * s1 + l22 * s2) / nk
                d1 = u11 * (new_x - mx)
                d2 = u12 * (new_x - mx) + u22 * (new_y - my)
                c11 = (s11 - 2.0 * d1 * s1 + s * d1 * d1) / nk
                c12 = (s12 - d1 * s2 - d2 * s1 + s * d1 * d2) / nk
                c22 = (s22 - 2.0 * d2 * s2 + s * d2 * d2) / nk
                v11 = l11 * l11 * c11 + reg
                v12 = l11 * (l21 * c11 + l22 * c12)
                v22 = l21 * l21 * c11 + 2.0 * l21 * l22 * c12 + l22 * l22 * c22 + reg
                mu[k, 0], mu[k, 1] = new_x, new_y
                w[k] = nk
                count += nk
                a = np.sqrt(v11)
                b = v12 / a
                c = np.sqrt(max(v22 - b * b, 0.5 * reg))
                u[k, 0] = 1.0 / a
                u[k, 1] = -b / (a * c)
                u[k, 2] = 1.0 / c
            for k in range(components):
                w[k] /= count
            n_iter[m] = iteration
            if abs(bound - previous) < tol:
                converged[m] = True
                break
        bounds[m] = bound
        _log_joint(x, y, w, mu, u, log_joint, largest)
        out = labels[m]
        for i in range(n):
            out[i] = 0
        for k in range(components - 1, -1, -1):
            row = log_joint[k]
            for i in range(n):
                if row[i] == largest[i]:
                    out[i] = k


def em(
    points: _Array, weights: _Array, means: _Array, factors: _Array, max_iter: int, tol: float, reg: float, threads: int
) -> tuple[npt.NDArray[Any], ...]:
    """Run EM in place on `weights` `(F * S, K)`, `means` `(F * S, K, 2)` and `factors` `(F * S, K, 3)` of S starts.

    Returns:
        Weights, means, factors, lower bounds `(F * S,)`, labels `(F * S, N)`, iterations and convergence.
    """
    xs, ys = np.ascontiguousarray(points[..., 0]), np.ascontiguousarray(points[..., 1])
    mixtures = len(weights)
    bounds = np.empty(mixtures)
    n_iter = np.zeros(mixtures, np.int64)
    converged = np.zeros(mixtures, np.bool_)
    labels = np.empty((mixtures, xs.shape[1]), np.int64)
    arguments = (xs, ys, weights, means, factors, max_iter, tol, reg, bounds, n_iter, converged, labels)
    _in_threads(lambda first, last: _run(*arguments, first, last), mixtures, threads)
    return weights, means, factors, bounds, labels, n_iter, converged


@numba.njit(nogil=True, cache=True)
def _lloyd(xs, ys, centres, max_iter, same, labels, first, last):  # type: ignore[no-untyped-def]
    """The best of several k-means clusterings of the filters `first` to `last`."""
    n, starts, clusters = xs.shape[1], centres.shape[1], centres.shape[2]
    label = np.empty(n, np.int64)
    distance = np.empty(n)
    sums = np.empty((clusters, 3))
    for f in range(first, last):
        x, y = xs[f], ys[f]
        best = np.inf
        for s in range(starts):
            c = centres[f, s].copy()
            inertia = np.inf
            for _ in range(max_iter):
                for i in range(n):
                    dx, dy = x[i] - c[0, 0], y[i] - c[0, 1]
                    distance[i] = dx * dx + dy * dy
                    label[i] = 0
                for k in range(1, clusters):
                    cx, cy = c[k, 0], c[k, 1]
                    for i in range(n):
                        dx, dy = x[i] - cx, y[i] - cy
                        d = dx * dx + dy * dy
                        nearer = d < distance[i]
                        distance[i] = d if nearer else distance[i]
                        label[i] = k if nearer else label[i]
                previous = inertia
                inertia = distance.sum()
                if not inertia < previous:
                    break
                sums[:] = 0.0
                for i in range(n):
                    k = label[i]
                    sums[k, 0] += 1.0
                    sums[k, 1] += x[i]
                    sums[k, 2] += y[i]
                for k in range(clusters):
                    if sums[k, 0] > 0:
                        c[k, 0], c[k, 1] = sums[k, 1] / sums[k, 0], sums[k, 2] / sums[k, 0]
            if inertia + same * max(1.0, inertia) < best:
                best = inertia
                labels[f] = label


def kmeans(points: _Array, centres: _Array, max_iter: int, same: float, threads: int) -> npt.NDArray[np.int64]:
    """Labels `(F, N)` of the best of S k-means clusterings from `centres` `(F, S, K, 2)`."""
    xs, ys = np.ascontiguousarray(points[..., 0]), np.ascontiguousarray(points[..., 1])
    labels = np.zeros(xs.shape, np.int64)
    _in_threads(lambda first, last: _lloyd(xs, ys, centres, max_iter, same, labels, first, last), len(xs), threads)
    return labels


def _in_threads(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Split `count` pieces of work among threads, in ranges short enough to even out."""
    step = max(1, min(64, count // (4 * threads)))
    if threads == 1 or count <= step:
        work(0, count)
        return
    firsts = range(0, count, step)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, firsts, (min(first + step, count) for first in firsts)))
