"""Compiled loops of `mixtures.py`: expectation maximization, then k-means and the moments of its clusters.

Inner loops run over samples, without branches or calls, on arrays that stay in the first-level cache, so that the
compiler can vectorize them. Sums may be reordered ("reassoc"), but in the same way for every filter.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lightning_anomaly._internal.compilation import compile_loop

_Array = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
EMPTY = 10 * float(np.finfo(np.float64).eps)  # added to every component's count, as in scikit-learn
_LN2 = math.log(2)
SCALE = math.sqrt(0.5 / _LN2)  # exp(-y^2 / 2) = 2^-(SCALE y)^2
_LOG_NORM = math.log(math.pi / _LN2)  # log(2 pi), plus the contribution of scaled factors to a log-density
_BLOCK = 256  # samples per block of the E-step; the arrays of five components fill half of a first-level cache
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_EXPONENT = np.int64(52)  # first bit of a double's exponent
# 2^r for |r| <= 1/2 to 2e-17: the Chebyshev series of 2^(s / 2) up to degree 11, written in powers of r. Its
# coefficients are Bessel functions 2 I_n(ln(2) / 2).
_SERIES = (  # from the highest power to the lowest
    *(4.456675463639861e-10, 7.074194562613105e-09, 1.0178051192117847e-07, 1.3215432534254118e-06),
    *(1.5252733856295574e-05, 0.00015403530463727982, 0.001333355814639035, 0.009618129107587253),
    *(0.0555041086648217, 0.24022650695910158, 0.6931471805599453, 1.0),
)
_SAME = 1e-9  # relative difference up to which inertias are equal; absolute for those below 1
_ITERATIONS = 300  # at most, like scikit-learn's KMeans
_DRAW = 32  # samples per partial sum of squared distances; a draw first finds its partial sum


# Sums must not be reordered here, or rounding by a large constant would vanish.
@compile_loop(forceinline=True, fastmath={"contract"})
def _exp2(t: float) -> float:
    """Compute 2^t for `t <= 0` to one unit in the last place; at least 2^-1000."""
    t = max(t, -1000.0)
    shifted = t + _ROUND
    r = t - (shifted - _ROUND)
    p = _SERIES[0]
    for coefficient in _SERIES[1:]:
        p = p * r + coefficient
    bits = np.float64(p).view(np.int64) + (np.float64(shifted).view(np.int64) << _EXPONENT)
    power: float = np.int64(bits).view(np.float64)
    return power


@compile_loop(forceinline=True, fastmath={"contract"})
def _whitened(x: float, y: float, mx: float, my: float, u11: float, u12: float, u22: float) -> tuple[float, float]:
    dx, dy = x - mx, y - my
    return u11 * dx, u12 * dx + u22 * dy


@compile_loop(forceinline=True, fastmath={"contract"})
def _log_joint(x: float, y: float, mx: float, my: float, u11: float, u12: float, u22: float, constant: float) -> float:
    y1, y2 = _whitened(x, y, mx, my, u11, u12, u22)
    return (constant - y1 * y1) - y2 * y2


@compile_loop(fastmath={"contract"}, error_model="numpy")
def _m_step(w: _Array, mu: _Array, u: _Array, sums: _Array, reg: float) -> float:
    """Update counts, means and factors in place from moments of whitened residuals; return the sum of the counts."""
    count = 0.0
    for k in range(w.size):
        s, s1, s2, s11, s12, s22 = sums[k, 0], sums[k, 1], sums[k, 2], sums[k, 3], sums[k, 4], sums[k, 5]
        u11, u12, u22 = u[k, 0], u[k, 1], u[k, 2]
        l11, l22 = 1.0 / u11, 1.0 / u22
        l21 = -u12 * l11 * l22
        nk = s + EMPTY
        share = 1.0 / nk
        dx = (l11 * s1 - EMPTY * mu[k, 0]) * share
        dy = (l21 * s1 + l22 * s2 - EMPTY * mu[k, 1]) * share
        d1, d2 = u11 * dx, u12 * dx + u22 * dy
        c11 = (s11 - d1 * (2.0 * s1 - s * d1)) * share
        c12 = (s12 - d1 * s2 - d2 * (s1 - s * d1)) * share
        c22 = (s22 - d2 * (2.0 * s2 - s * d2)) * share
        v11 = l11 * l11 * c11 + reg
        v12 = l11 * (l21 * c11 + l22 * c12)
        v22 = l21 * (l21 * c11 + 2.0 * l22 * c12) + l22 * l22 * c22 + reg
        a = np.sqrt(v11)
        b = v12 / a
        c = np.sqrt(max(v22 - b * b, 0.5 * reg))
        mu[k, 0] += dx
        mu[k, 1] += dy
        u[k, 0], u[k, 1], u[k, 2] = SCALE / a, -SCALE * b / (a * c), SCALE / c
        w[k] = nk
        count += nk
    return count


@compile_loop(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def expectation_maximization(
    xs: _Array,
    ys: _Array,
    weights: _Array,
    means: _Array,
    factors: _Array,
    max_iter: int,
    tol: float,
    reg: float,
    bounds: _Array,
    n_iter: _Integers,
    converged: npt.NDArray[np.bool_],
    labels: _Integers,
) -> None:
    """Run EM and update the parameters in place; logarithms have base 2, and `factors` are scaled accordingly."""
    n, components = xs.shape[1], weights.shape[1]
    block = _BLOCK if components < 16 else 64  # `components ** block` must not overflow
    rows = np.empty((components, block))
    largest, total, constant = np.empty(block), np.empty(block), np.empty(components)
    sums = np.empty((components, 6))
    for m in range(len(xs)):
        xm, ym = xs[m], ys[m]
        w, mu, u = weights[m], means[m], factors[m]
        bound = -np.inf
        for iteration in range(1, max_iter + 1):
            for k in range(components):
                constant[k] = np.log2(w[k] * u[k, 0] * u[k, 2])
            sums[:] = 0.0
            value = 0.0
            for begin in range(0, n, block):
                size = min(block, n - begin)
                x, y = xm[begin : begin + size], ym[begin : begin + size]
                for i in range(size):
                    largest[i] = -np.inf
                    total[i] = 0.0
                for k in range(components):
                    row, c = rows[k], constant[k]
                    mx, my, u11, u12, u22 = mu[k, 0], mu[k, 1], u[k, 0], u[k, 1], u[k, 2]
                    for i in range(size):
                        t = _log_joint(x[i], y[i], mx, my, u11, u12, u22, c)
                        row[i] = t
                        largest[i] = t if t > largest[i] else largest[i]
                for k in range(components - 1):
                    row = rows[k]
                    for i in range(size):
                        e = _exp2(row[i] - largest[i])
                        row[i] = e
                        total[i] += e
                row = rows[components - 1]
                product = 1.0
                for i in range(size):  # the last component, and the work per sample
                    e = _exp2(row[i] - largest[i])
                    row[i] = e
                    t = total[i] + e
                    total[i] = 1.0 / t
                    product *= t
                    value += largest[i]
                value += np.log2(product)
                for k in range(components):
                    row = rows[k]
                    mx, my, u11, u12, u22 = mu[k, 0], mu[k, 1], u[k, 0], u[k, 1], u[k, 2]
                    s, s1, s2, s11, s12, s22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                    for i in range(size):
                        r = row[i] * total[i]
                        y1, y2 = _whitened(x[i], y[i], mx, my, u11, u12, u22)
                        r1, r2 = r * y1, r * y2
                        s += r
                        s1 += r1
                        s2 += r2
                        s11 += r1 * y1
                        s12 += r1 * y2
                        s22 += r2 * y2
                    sums[k, 0] += s
                    sums[k, 1] += s1
                    sums[k, 2] += s2
                    sums[k, 3] += s11
                    sums[k, 4] += s12
                    sums[k, 5] += s22
            previous = bound
            bound = value * _LN2 / n - _LOG_NORM
            count = _m_step(w, mu, u, sums, reg)
            for k in range(components):
                w[k] /= count
            n_iter[m] = iteration
            if abs(bound - previous) < tol:
                converged[m] = True
                break
        bounds[m] = bound
        label = labels[m]
        for begin in range(0, n, block):
            size = min(block, n - begin)
            x, y, nearest = xm[begin : begin + size], ym[begin : begin + size], label[begin : begin + size]
            for i in range(size):
                largest[i] = -np.inf
                nearest[i] = 0
            for k in range(components):
                c = np.log2(w[k] * u[k, 0] * u[k, 2])
                mx, my, u11, u12, u22 = mu[k, 0], mu[k, 1], u[k, 0], u[k, 1], u[k, 2]
                for i in range(size):
                    t = _log_joint(x[i], y[i], mx, my, u11, u12, u22, c)
                    nearest[i] = k if t > largest[i] else nearest[i]
                    largest[i] = t if t > largest[i] else largest[i]


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
