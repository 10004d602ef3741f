"""The loop of `em.py` in torch: many mixtures at a time, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lightning_anomaly.clustering.threads import ranges, rows_at_a_time, torch_in_threads

__all__ = ["em"]

_LN2 = math.log(2)
_SCALE = math.sqrt(0.5 / _LN2)  # exp(-y^2 / 2) = 2^-(_SCALE y)^2: torch's `exp2` takes half the time of its `exp`
_LOG_NORM = math.log(math.pi / _LN2)  # log(2 pi) and what scaled factors add to the logarithm of a density
_CHECK_EVERY = 8  # iterations between two looks at who has converged, where looking means waiting for a GPU
_CHUNK_BYTES = 2**19  # largest array of the E-step on the CPU
_ALIGN = 64  # rows are padded to whole vectors


def em(
    points: Tensor,
    weights: Tensor,
    means: Tensor,
    factors: Tensor,
    max_iter: int,
    tol: float,
    reg: float,
) -> tuple[Tensor, ...]:
    """EM of S mixtures for each filter of points `(F, N, 2)`; a mixture leaves the batch when it has converged.

    Args:
        points: Points `(F, N, 2)`.
        weights: Weights to start from `(F, S, K)`.
        means: Means to start from `(F, S, K, 2)`.
        factors: Upper triangular factors of the precisions `(F, S, K, 3)`.
        max_iter: See `fit_mixtures`, as for `tol` and `reg`, its `reg_covar`.
        tol: See there.
        reg: See there.

    Returns:
        Weights, means, factors, lower bounds `(F * S,)`, labels `(F * S, N)`, iterations and convergence.
    """
    fit = partial(_em, max_iter=max_iter, tol=tol, reg=reg)
    fitted = torch_in_threads(fit, *ranges(points, weights, means, factors), like=points)
    return tuple(torch.cat(part) for part in zip(*fitted, strict=True))


def _em(
    points: Tensor,
    weights: Tensor,
    means: Tensor,
    factors: Tensor,
    max_iter: int,
    tol: float,
    reg: float,
) -> tuple[Tensor, ...]:
    weights, means, factors = (tensor.flatten(0, 1) for tensor in (weights, means, factors))
    mixtures, components = weights.shape
    samples, starts = points.shape[1], mixtures // max(1, len(points))
    on_cpu = points.device.type == "cpu"
    padding = -samples % _ALIGN
    coordinates = torch.cat([points, points[:, -1:].expand(-1, padding, -1)], 1).transpose(1, 2).contiguous()
    row = components * (samples + padding)
    rows = rows_at_a_time(row, points)
    if on_cpu:
        rows = max(1, min(rows, _CHUNK_BYTES // (row * points.element_size())))
    # Means, u11, u22, u12 and weights in one tensor (6, K, F * S), along whose last axis the M-step's operations go.
    parts = [*means.unbind(2), *(factors[..., [0, 2, 1]] * _SCALE).unbind(2), weights]
    state = torch.stack([part.T for part in parts])
    bound = state.new_empty(mixtures)
    n_iter = torch.zeros(mixtures, dtype=torch.int64, device=points.device)
    converged = torch.zeros(mixtures, dtype=torch.bool, device=points.device)
    labels = torch.empty(mixtures, samples, dtype=torch.int64, device=points.device)

    with torch.inference_mode():  # spares torch the bookkeeping of views
        e_step = _EStep(coordinates, samples, starts, components, max(1, min(rows, mixtures)))
        todo = torch.arange(mixtures, device=points.device)
        own, previous = state, bound.new_full((mixtures,), -torch.inf)
        running = torch.ones_like(converged)
        for iteration in range(1, max_iter + 1):
            if not len(todo):
                break
            moments, value = e_step.moments(own, todo)
            own = torch.where(running, _m_step(own, moments, reg), own)
            done = running & ((value - previous).abs() < tol)
            previous = torch.where(running, value, previous)
            n_iter[todo] += running
            converged[todo] |= done
            running = running & ~done
            if on_cpu or iteration % _CHECK_EVERY == 0 or iteration == max_iter:
                state[:, :, todo], bound[todo] = own, previous
                todo, own, previous = todo[running], own[:, :, running], previous[running]
                running = running[running]
        e_step.label(state, labels)
    fitted = state.permute(2, 1, 0)
    return fitted[..., 5], fitted[..., :2], fitted[..., [2, 4, 3]] / _SCALE, bound, labels, n_iter, converged


class _EStep:
    """The E-step of many mixtures, in chunks whose arrays are written over and over and so stay in a cache.

    It must not matter which mixtures share a chunk. So all is computed by operations on single elements and by sums
    along rows of samples: `softmax`, `sum` along K and products of matrices round in another way for another number or
    place of mixtures. And `exp2`, which rounds in another way what does not fill a vector, gets whole vectors: rows are
    padded, and the thread that works on a chunk does so alone.

    Args:
        coordinates: Points `(F, 2, N)`, padded to whole vectors.
        samples: Number of samples before padding.
        starts: Number of mixtures of each filter.
        components: Number of components, K.
        rows: Largest number of mixtures in a chunk.
    """

    def __init__(self, coordinates: Tensor, samples: int, starts: int, components: int, rows: int) -> None:
        self._coordinates, self._samples, self._starts = coordinates, samples, starts
        self._components, self._rows, self._width = components, rows, coordinates.shape[2]
        self._memory = coordinates.new_empty(rows * self._width * (5 * components + 5))
        self._arrays: dict[int, _Arrays] = {}

    def moments(self, state: Tensor, mixtures: Tensor) -> tuple[Tensor, Tensor]:
        """The sums that the M-step needs `(6, K, B)`, and the lower bounds `(B,)`, of the mixtures with these indices.

        With y the whitened residuals, the sums are those of the responsibilities times 1, y1, y2, y1^2, y2^2, y1 y2.
        """
        sums = torch.empty_like(state)
        value = state.new_empty(len(mixtures))
        padded = self._samples < self._width
        for a, out, out_value in zip(
            self._log_joints(state, mixtures),
            torch.split(sums, self._rows, 2),
            torch.split(value, self._rows),
            strict=True,
        ):
            torch.amax(a.resp, 0, out=a.largest)
            a.resp.sub_(a.largest).exp2_()
            a.total.copy_(a.components[0])
            for component in a.components[1:]:
                a.total.add_(component)
            if padded:
                a.total[:, self._samples :] = 1
                a.largest[:, self._samples :] = 0
            # The sum of eight logarithms is that of a product.
            torch.mul(*a.halves, out=a.half)
            a.quarters[0].mul_(a.quarters[1])
            a.eighths[0].mul_(a.eighths[1])
            torch.log2(a.eighths[0], out=a.logs)
            torch.sum(a.bound, 1, out=out_value)
            a.total.reciprocal_()
            if padded:
                a.total[:, self._samples :] = 0
            a.resp.mul_(a.total)
            torch.sum(a.resp, 2, out=out[0])
            torch.mul(a.y, a.resp, out=a.product)
            torch.sum(a.product, 3, out=out[1:3])
            torch.mul(a.product1, a.y2, out=a.resp)
            torch.sum(a.product.mul_(a.y), 3, out=out[3:5])
            torch.sum(a.resp, 2, out=out[5])
        return sums, value * (_LN2 / self._samples) - _LOG_NORM

    def label(self, state: Tensor, labels: Tensor) -> None:
        """Fill `labels` `(B, N)` of all mixtures with the most probable component, the first of equals."""
        mixtures = torch.arange(len(labels), device=labels.device)
        last = self._components - 1
        from_last = torch.arange(last, -1, -1, device=labels.device).to(state.dtype)[:, None, None]
        for a, out in zip(self._log_joints(state, mixtures), torch.split(labels, self._rows), strict=True):
            # `max` with indices takes four times as long, `argmax` eighty times.
            torch.amax(a.resp, 0, out=a.largest)
            torch.ge(a.resp, a.largest, out=a.resp).mul_(from_last)
            out.copy_(last - torch.amax(a.resp, 0, out=a.largest)[:, : self._samples])

    def _log_joints(self, state: Tensor, mixtures: Tensor) -> Iterator[_Arrays]:
        """Chunk by chunk, log2(pi_k N(x | k)) up to a constant in `resp`, and the whitened residuals in `y`."""
        parameters = state[:2], state[2:4], state[4] / state[2], (state[2] * state[3] * state[5]).log2_()
        chunks = [torch.split(part[..., None], self._rows, -2) for part in parameters]
        owners = torch.split(mixtures // self._starts, self._rows)
        for owner, mean, diagonal, shear, c in zip(owners, *chunks, strict=True):
            rows = len(owner)
            if rows not in self._arrays:
                self._arrays[rows] = _Arrays(self._memory, self._components, rows, self._width)
            a = self._arrays[rows]
            torch.index_select(self._coordinates, 0, owner, out=a.own)
            torch.sub(a.points, mean, out=a.y).mul_(diagonal)
            a.y2.addcmul_(a.y1, shear)
            torch.addcmul(c, a.y1, a.y1, value=-1, out=a.resp)
            a.resp.addcmul_(a.y2, a.y2, value=-1)
            yield a


class _Arrays:
    """Named pieces of one memory, for B mixtures of K components over N padded samples.

    Attributes:
        y: Whitened residuals `(2, K, B, N)`, with `y1` and `y2`.
        product: Their products with something `(2, K, B, N)`, with `product1`.
        resp: Logarithms, then responsibilities `(K, B, N)`; `components` are its K parts.
        own: Each mixture's points `(B, 2, N)`, and the same as `points` `(2, 1, B, N)`.
        total: Sum over the components `(B, N)`, and its two `halves`.
        half: Products of these `(B, N / 2)`, with the two `quarters` and `eighths` of its beginning.
        bound: `(B, N + N / 8)`: `largest`, the largest logarithm of each sample, and `logs`, those of the products.
    """

    def __init__(self, memory: Tensor, components: int, rows: int, width: int) -> None:
        def take(*shape: int) -> Tensor:
            nonlocal memory
            size = math.prod(shape)
            taken, memory = memory[:size].view(shape), memory[size:]
            return taken

        self.y = take(2, components, rows, width)
        self.y1, self.y2 = self.y
        self.product = take(2, components, rows, width)
        self.product1 = self.product[0]
        self.resp = take(components, rows, width)
        self.components = self.resp.unbind()
        self.own = take(rows, 2, width)
        self.points = self.own.transpose(0, 1)[:, None]
        self.total = take(rows, width)
        self.halves = self.total.chunk(2, 1)
        self.half = take(rows, width // 2)
        self.quarters = self.half.chunk(2, 1)
        self.eighths = self.quarters[0].chunk(2, 1)
        self.bound = take(rows, width + width // 8)
        self.largest, self.logs = self.bound.split_with_sizes([width, width // 8], 1)


def _m_step(state: Tensor, moments: Tensor, reg: float) -> Tensor:
    """The next means, factors and weights `(6, K, B)`."""
    mx, my, u11, u22, u12, _ = state
    s, s1, s2, s11, s22, s12 = moments
    empty = 10 * torch.finfo(s.dtype).eps  # what scikit-learn adds to every component's count
    count = s + empty
    share = 1 / count
    l11, l22 = 1 / u11, 1 / u22
    l21 = -u12 * l11 * l22
    dx = (l11 * s1 - empty * mx) * share
    dy = (l21 * s1 + l22 * s2 - empty * my) * share
    d1, d2 = u11 * dx, u12 * dx + u22 * dy
    rest = s1 - s * d1
    c11 = (s11 - d1 * (s1 + rest)) * share
    c12 = (s12 - d1 * s2 - d2 * rest) * share
    c22 = (s22 - d2 * (2 * s2 - s * d2)) * share
    v11 = l11 * l11 * c11 + reg
    v12 = l11 * (l21 * c11 + l22 * c12)
    v22 = l21 * (l21 * c11 + 2 * l22 * c12) + l22 * l22 * c22 + reg
    a = v11.sqrt()
    b = v12 / a
    c = (v22 - b * b).clamp_(min=0.5 * reg).sqrt_()
    total = count[0]
    for k in range(1, len(count)):
        total = total + count[k]
    return torch.stack([mx + dx, my + dy, _SCALE / a, _SCALE / c, -_SCALE * b / (a * c), count / total])
